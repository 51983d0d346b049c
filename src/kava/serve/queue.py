"""The queue of waiting questions: every request gets its share of the places and of the batches."""

from collections import deque
from collections.abc import Sequence

from kava.serve.jobs import Job


class Queue:
    """Jobs that wait, grouped by request; not safe for use from several threads at once.

    Args:
        length: number of jobs that may wait; see `add` for the exception.
    """

    def __init__(self, length: int):
        self.length = length
        self._requests: deque[deque[Job]] = deque()

    def __len__(self) -> int:
        """Return the number of waiting jobs."""
        return sum(map(len, self._requests))

    def add(self, jobs: Sequence[Job]) -> bool:
        """Add the jobs of one request, or none of them if they do not fit; return whether they fit.

        They fit if at most `length` jobs then wait. They also fit if they are no more than an equal
        share, `length` divided by the number of waiting requests with this one: a large request
        that fills the queue does not keep small ones out. So at most `length` requests wait, with
        at most `length` * (1 + ln(`length`)) jobs.

        Args:
            jobs: all with the same number of iterations.
        """
        self._drop()
        share = self.length // (len(self._requests) + 1)
        if len(self) + len(jobs) > self.length and len(jobs) > share:
            return False
        self._requests.append(deque(jobs))
        return True

    def first_count(self) -> int:
        """Return the number of jobs that a next batch without a maximum size would have."""
        return sum(map(len, self._split()[0]))

    def take(self, size: int) -> list[Job]:
        """Take the next batch, at most `size` jobs with the same number of iterations.

        The batch begins with the request whose turn it is and takes one job of each request in
        turn, until it is full. Requests with another number of iterations are next: no request
        waits for all jobs of another one.
        """
        self._drop()
        turns, others = self._split()
        batch: list[Job] = []
        while turns and len(batch) < size:
            jobs = turns.popleft()
            batch.append(jobs.popleft())
            if jobs:
                turns.append(jobs)
        self._requests = others + turns
        return batch

    def _split(self) -> tuple[deque[deque[Job]], deque[deque[Job]]]:
        """Return the requests with the number of iterations of the first one, and all others."""
        same: deque[deque[Job]] = deque()
        others: deque[deque[Job]] = deque()
        for jobs in self._requests:
            alike = jobs[0].num_iterations == self._requests[0][0].num_iterations
            (same if alike else others).append(jobs)
        return same, others

    def _drop(self) -> None:
        """End and remove the jobs whose answers are no longer needed."""
        waiting = (
            deque(job for job in jobs if not job.end_if_unwanted()) for jobs in self._requests
        )
        self._requests = deque(filter(None, waiting))
