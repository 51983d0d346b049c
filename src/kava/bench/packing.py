"""How long a matrix of trainings takes on some GPUs: one GPU a run, or several."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    """One training.

    hours: on one GPU.
    after: the name of the job that has to be done before; None, or one that is not among them, is
        none.
    batch_size: rows of a step, which its GPUs share evenly.
    """

    name: str
    hours: float
    after: str | None = None
    batch_size: int = 1


def packed(jobs: Sequence[Job], gpus: int) -> float:
    """Hours until all are done, where each takes one GPU from its beginning to its end.

    A GPU that is free takes, of the jobs that may begin, the one that the most hours hang on: its
    own and those of the longest line of jobs after it. Without such lines that is the longest
    first, at most a third longer than the best there is (Graham, 1969).
    """
    hanging, waiting = _hanging(jobs), list(jobs)
    waiting.sort(key=lambda job: -hanging[job.name])
    known = {job.name for job in jobs}
    free, ends = [0.0] * gpus, {}
    while waiting:
        now = heapq.heappop(free)
        ready = [
            job for job in waiting if job.after not in known or ends.get(job.after, now + 1) <= now
        ]
        if ready:
            waiting.remove(ready[0])
            ends[ready[0].name] = now + ready[0].hours
            heapq.heappush(free, ends[ready[0].name])
        else:  # until the next job ends that one waits for
            begun = [ends[job.after] for job in waiting if job.after in ends]
            heapq.heappush(free, min(begun))
    return max(ends.values(), default=0.0)


def shared(jobs: Sequence[Job], gpus: int) -> float:
    """The same where GPUs that would be left share a job's batch and halve its time in two.

    Where there are fewer GPUs than jobs none is left. Else all jobs have one, and those left go to
    the longest of the line of jobs that ends last, as many as its batch can be shared by next,
    until they do not suffice. GPUs do not move from one job to another.
    """
    if gpus < len(jobs):
        return packed(jobs, gpus)
    by_name, counts = {job.name: job for job in jobs}, {job.name: 1 for job in jobs}
    left = gpus - len(jobs)
    while True:
        hours = {job.name: job.hours / counts[job.name] for job in jobs}
        lines = [_line(job, by_name) for job in jobs]
        last = max(lines, key=lambda line: sum(hours[job.name] for job in line), default=[])
        steps = [(hours[job.name], job.name, _more(job, counts[job.name])) for job in last]
        possible = [step for step in steps if step[2] and step[2] <= left]
        if not possible:
            return sum(hours[job.name] for job in last)
        _, name, more = max(possible)
        counts[name] += more
        left -= more


def _more(job: Job, count: int) -> int:
    """How many more GPUs the next even share of its batch needs; 0 if there is none."""
    larger = (n for n in range(count + 1, job.batch_size + 1) if job.batch_size % n == 0)
    return next(larger, count) - count


def _line(job: Job, by_name: dict[str, Job]) -> list[Job]:
    """A job with all that have to be done before it."""
    line = [job]
    while line[-1].after in by_name:
        line.append(by_name[line[-1].after])
    return line


def _hanging(jobs: Sequence[Job]) -> dict[str, float]:
    """Hours of each job with the longest line of jobs that follow it."""
    by_name = {job.name: job for job in jobs}
    found = {job.name: job.hours for job in jobs}
    for job in jobs:
        total = 0.0
        for before in _line(job, by_name):
            total += before.hours
            found[before.name] = max(found[before.name], total)
    return found
