"""Submit runs as SLURM jobs through submitit: one job per run, equal resources in one job array.

OUTPUT/slurm/jobs.jsonl            run, job and log (see kava.sweeps.record)
OUTPUT/slurm/JOB_0_log.out         what a job prints, over all its starts; with several processes,
                                   that of the main one, and JOB_1_log.out etc. of the others
OUTPUT/slurm/JOB_submission.sh     what was passed to sbatch
OUTPUT/slurm/JOB_submitted.pkl     submitit's own working files: what the job is to do, and
OUTPUT/slurm/JOB_0_result.pkl      its result; nothing else reads them

A job with several processes has a SLURM task for each, on one or more nodes. A job that is
preempted or runs out of time stops at a step boundary, saves a checkpoint, and is requeued
(`JobWork`). A job that is killed resumes from its last checkpoint when SLURM starts it again.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console

from kava.errors import KavaError, install
from kava.reasoning.resolve import validate_resolved
from kava.sweeps import record
from kava.sweeps.attempt import (
    FAILED,
    FINISHED,
    LOCKED,
    RESUME,
    SKIPPED,
    START,
    SUBMITTED,
    Outcome,
    Run,
    Scoring,
    attempt,
    state,
)
from kava.sweeps.record import SlurmJob
from kava.system import distributed, environment, links, lock, signals, slurm_queue
from kava.system.text import PlainConsole, one_line, print_text
from kava.training.arguments import rows_at_once

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

    from kava.recipe.schema import Recipe, Resources

#: How often a run may exceed its time limit and be requeued (ours).
TIMEOUTS = 100
#: Seconds before its time limit at which a job is signalled (ours): a step and a validation long.
NOTICE = 300
_QUIET = "export TORCH_CPP_LOG_LEVEL=ERROR"


@dataclass(frozen=True)
class SubmitOptions:
    """Where jobs are submitted. The resources of each job are in its recipe (`resources`).

    array_limit: so many at a time. cluster: submitit's; its `local` starts a process for each
    run at once, for trying out.

    Raises:
        KavaError: a partition or an account that is no name of one.
    """

    partition: str | None = None
    account: str | None = None
    array_limit: int | None = None
    cluster: str = "slurm"

    def __post_init__(self) -> None:
        for option, name in (("--partition", self.partition), ("--account", self.account)):
            if name is not None and not re.fullmatch(r"[\w.,:@+][\w.,:@+-]*", name, re.ASCII):
                raise KavaError(
                    f"sweep: {option} {name!r}: use only letters, digits and . , : @ + - _",
                    code="sweeps.not-a-name",
                    key=option,
                )


@dataclass(frozen=True)
class JobWork:
    """The work of one job: a run, as `kava sweep` would do it on this machine.

    Each process of the job calls it, and they share the work (`kava.system.distributed`).

    It holds plain values, so that a recipe file may change while its job waits. `words` are those
    of the command that submitted it, which its result names, and None where a program did.
    """

    name: str
    recipe: dict[str, Any]
    folder: Path
    tasks: tuple[str, ...]
    files: tuple[str, ...]
    limit: int | None
    words: tuple[str, ...] | None = None

    @classmethod
    def from_run(cls, run: Run, scoring: Scoring) -> JobWork:
        """Make the work of a run."""
        tree = run.recipe.model_dump(by_alias=True)
        tasks = tuple(scoring.names), tuple(scoring.files), scoring.limit
        words = environment.own_words()
        command = None if words is None else tuple(words)
        return cls(run.name, tree, run.folder, *tasks, words=command)

    def __call__(self) -> str:
        """Run inside the job and return the outcome; a failure ends the job with status 1."""
        recipe = validate_resolved(self.recipe, self.name)
        _join_process_group(recipe.resources)
        sent_signal = _signal()
        queue_again = signal.getsignal(sent_signal)  # the handler of submitit
        received: list[int] = []
        try:
            with signals.listen_for(received, sent_signal, signal.SIGTERM):
                outcome = self._run_attempt(recipe)
        except signals.Preempted:
            distributed.leave_process_group()
            self._stop(received, sent_signal, queue_again)
        if outcome.status == FAILED:
            distributed.exit_process(1)
        distributed.leave_process_group()
        return outcome.status

    def checkpoint(self) -> DelayedSubmission:
        """Return the same work to submit again; submitit calls this.

        The checkpoint to resume from is in the run's folder.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _run_attempt(self, recipe: Recipe) -> Outcome:
        console = PlainConsole(soft_wrap=True, quiet=not distributed.is_main())
        # Until here submitit's own (kava.system.environment).
        sys.argv = ["python"] if self.words is None else ["kava", *self.words]
        run = Run(self.name, recipe, self.folder)
        scoring = Scoring(self.tasks, self.files, self.limit)
        return attempt(run, scoring, partial(print_text, console, str(run.folder)), console)

    def _stop(self, received: list[int], sent_signal: int, queue_again: Any) -> NoReturn:
        """End the job, and have it requeued unless SLURM is already removing it.

        SIGTERM alone is sent by a cancellation, after which the job must not return, by SLURM's own
        requeue, and at the start of a preemption's grace time; only in the last case is the job
        still running. With several processes, the main one does this, and the others exit silently.
        """
        if not distributed.is_main():
            sys.exit(0)
        names = ", ".join(signal.Signals(number).name for number in received)
        print(f"{self.folder}: received {names}; progress saved, the run can continue", flush=True)
        own = os.environ.get("SLURM_JOB_ID")
        if sent_signal in received or (own and slurm_queue.states([own]).get(own) == "RUNNING"):
            queue_again(sent_signal, None)  # ends the process
        sys.exit(128 + received[0])


def submit(
    runs: Sequence[Run], scoring: Scoring, output: Path, options: SubmitOptions, console: Console
) -> list[Outcome]:
    """Submit every run that is neither done nor in the queue; return the outcome of each.

    Raises:
        KavaError: no submitit or SLURM here, another process is submitting, or SLURM refuses; or a
            folder that jobs cannot be in.
    """
    check_output(output)
    check_installed(options.cluster)
    if options.cluster == "local" and any(run.recipe.resources.nodes > 1 for run in runs):
        raise KavaError(
            "sweep: submitit's local executor supports only one node; set resources.nodes=1",
            code="sweeps.one-node",
            key="resources.nodes",
        )
    existed = output.exists()
    try:
        with lock.acquire(output / "submit.lock"):
            outcomes = [
                predicted_state(run, scoring, reason)
                for run, reason in with_queue_state(runs, output)
            ]
            new = [outcome.run for outcome in outcomes if outcome.status == SUBMITTED]
            for group, limit in group_by_resources(new, options.array_limit):
                _submit_group(group, scoring, output, options, limit, console)
            record.add_to_plan(output, runs, scoring)
    except lock.LockHeld as held:
        raise KavaError(f"sweep: {held}", code="sweeps.in-use", key=str(output)) from None
    except KavaError:
        if not existed:
            with suppress(OSError):  # some jobs were submitted before others were refused
                output.rmdir()
        raise
    return outcomes


def with_queue_state(runs: Sequence[Run], output: Path) -> Iterator[tuple[Run, str]]:
    """Yield each run with a description of its state in SLURM's queue; empty if it is not there.

    Raises:
        KavaError: jobs were submitted, and SLURM does not answer; or a folder that jobs cannot be
            in.
    """
    check_output(output)
    jobs = record.jobs(output)
    known = {run.folder.name: jobs.get(run.folder.name) for run in runs}
    states = slurm_queue.states(job.job for job in known.values() if job and job.cluster == "slurm")
    for run in runs:
        job = known[run.folder.name]
        now = states.get(job.job) if job else None
        yield run, f"SLURM job {job.job} is {now}" if slurm_queue.is_active(now) else ""


def predicted_state(run: Run, scoring: Scoring, in_queue: str) -> Outcome:
    """Return the predicted outcome of a run; `in_queue` is its state in SLURM's queue."""
    if reason := in_queue or lock.holder(run.lock):
        return Outcome(run, LOCKED, reason)
    try:
        todo, _ = state(run, scoring.tasks_for(run.recipe))
        check_batch(run, todo)
    except Exception as error:
        return Outcome(run, FAILED, one_line(error))
    return Outcome(run, SKIPPED if todo == FINISHED else SUBMITTED)


def check_output(output: Path) -> None:
    """Refuse a folder whose name has characters that SLURM or a job's script would interpret.

    Raises:
        KavaError: names the character.
    """
    if found := re.search(r"[^\w ./,:@=+~-]", str(output.absolute())):
        raise KavaError(
            f"sweep: -o {str(output)!r}: SLURM jobs do not allow {found[0]!r} in the folder's "
            "path; use only letters, digits, spaces and . , : @ = + ~ - _",
            code="sweeps.not-a-folder-of-jobs",
            key="-o",
        )


def check_batch(run: Run, todo: str) -> None:
    """Raise an error if a run is to be trained and the processes of its job cannot share a batch.

    Raises:
        KavaError: says how many processes could.
    """
    if todo in (START, RESUME):
        rows_at_once(run.recipe.train, run.recipe.resources.all_processes)


def group_by_resources(runs: Sequence[Run], limit: int | None) -> list[tuple[list[Run], int]]:
    """Group runs by equal resources; return each group with the number that may run at a time.

    Job arrays are independent of each other, so `limit` is divided among them.

    Raises:
        KavaError: if there are more groups than `limit`.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(repr(run.recipe.resources), []).append(run)
    if limit is None or not groups:
        return [(group, len(group)) for group in groups.values()]
    if limit < len(groups):
        raise KavaError(
            f"sweep: --array-limit {limit}: these runs request {len(groups)} different sets of "
            "resources, which need one job array each; raise the limit to that number, or set "
            "--nodes, --gpus, --processes, --cpus, --memory and --time for all runs",
            code="sweeps.too-few-at-once",
            key="--array-limit",
        )
    shares = dict.fromkeys(groups, 1)
    for _ in range(limit - len(groups)):  # the group with the most runs per share
        shares[max(groups, key=lambda key: len(groups[key]) / shares[key])] += 1
    return [(group, min(shares[key], len(group))) for key, group in groups.items()]


def minutes(text: str | None) -> int | None:
    """Convert a time as SLURM takes it to whole minutes; None for None.

    The forms are `90`, `M:SS`, `H:MM:SS`, `D-H`, `D-H:MM` and `D-H:MM:SS`; seconds are rounded up.

    Raises:
        KavaError: if the time has another form.
    """
    if text is None:
        return None
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if not found:
        raise KavaError(
            f"--time {text}: must be minutes, H:MM:SS or D-HH:MM:SS, such as 24:00:00",
            code="sweeps.time-not-written-so",
            key="--time",
        )
    days, *parts = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, mins, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, (mins, seconds) = 0, (*numbers, 0)[:2]
    return 1440 * int(days or 0) + 60 * hours + mins + math.ceil(seconds / 60)


def describe_resources(resources: Resources) -> str:
    """Describe the resources that one job requests."""
    hours, rest = divmod(resources.minutes, 60)
    nodes, processes = resources.nodes, resources.all_processes
    gpus = f"{resources.gpus or 'no'} GPU{'s' * (resources.gpus > 1)}"
    cpus = f"{resources.cpus} CPU{'s' * (resources.cpus > 1)}"
    gpus = f"{nodes} nodes of {gpus}" if nodes > 1 else gpus
    share = f"{processes} processes of {cpus} and" if processes > 1 else f"{cpus},"
    return f"{gpus}, {share} {resources.memory_gb:g} GB, {hours}:{rest:02} h"


def check_installed(cluster: str = "slurm") -> None:
    """Raise an error if jobs cannot be submitted on this machine.

    Raises:
        KavaError: says what is missing.
    """
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise KavaError(
            f"--launcher slurm: submitit is not installed; {install('slurm')}",
            code="sweeps.no-submitit",
            key="--launcher",
        ) from None
    if cluster == "slurm" and not (shutil.which("sbatch") and shutil.which("srun")):
        raise KavaError(
            "--launcher slurm: sbatch was not found on this machine; run the command on a login "
            "node of the cluster, or omit --launcher to run on this machine",
            code="sweeps.no-slurm",
            key="--launcher",
        )


def _submit_group(
    runs: Sequence[Run],
    scoring: Scoring,
    output: Path,
    options: SubmitOptions,
    limit: int,
    console: Console,
) -> None:
    # submitit leaves a link of this name beside each script that it has submitted.
    links.check_tree(output / record.FOLDER, apart_from=".submission_file_*.sh")
    folder = (output / record.FOLDER).resolve()
    wanted = runs[0].recipe.resources
    work = [JobWork.from_run(run, scoring) for run in runs]
    with _undo_on_failure(folder):
        executor = _executor(folder, wanted, output.resolve().name, options, limit)
        submitted = executor.submit_array(work)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record.add_jobs(
        output,
        [
            SlurmJob(run.folder.name, job.job_id, job.paths.stdout.name, options.cluster, now)
            for run, job in zip(runs, submitted, strict=True)
        ],
    )
    first = submitted[0].job_id.partition("_")[0]
    array = f"job array {first}, at most {limit} at a time" if len(runs) > 1 else f"job {first}"
    print_text(console, f"{len(runs)} submitted as {array}; each {describe_resources(wanted)}")


def _executor(
    folder: Path, wanted: Resources, name: str, options: SubmitOptions, limit: int
) -> Any:
    import submitit

    executor = submitit.AutoExecutor(
        folder, cluster=options.cluster, slurm_max_num_timeout=TIMEOUTS
    )
    executor.update_parameters(
        name=f"kava-{name}",
        timeout_min=wanted.minutes,
        nodes=wanted.nodes,
        tasks_per_node=wanted.processes_per_node,
        cpus_per_task=wanted.cpus,
        mem_gb=wanted.memory_gb * wanted.processes_per_node,
        stderr_to_stdout=True,
        **({"gpus_per_node": wanted.gpus} if wanted.gpus else {}),
        slurm_partition=options.partition,
        slurm_account=options.account,
        slurm_array_parallelism=limit,
        # Hides a message of torch on each process: DDP looked for unused weights and found none.
        **({"slurm_setup": [_QUIET]} if wanted.all_processes > 1 else {}),
        slurm_signal_delay_s=min(NOTICE, 30 * wanted.minutes),
        slurm_additional_parameters={"requeue": True},
        # Since SLURM 22.05, srun does not inherit --cpus-per-task from the job. With
        # --kill-on-bad-exit, processes that wait for one that failed or was killed end too.
        slurm_srun_args=[f"--cpus-per-task={wanted.cpus}", "--kill-on-bad-exit=1"],
    )
    return executor


@contextmanager
def _undo_on_failure(folder: Path) -> Iterator[None]:
    """Create the folder; if the submission is refused, restore its previous state.

    Raises:
        KavaError: if it is refused, with the message of SLURM.
    """
    from submitit.core.utils import FailedSubmissionError, UncompletedJobError

    existed = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    before = set(folder.iterdir())
    try:
        yield
    except (FailedSubmissionError, UncompletedJobError) as error:
        for file in set(folder.iterdir()) - before:
            file.unlink()
        if not existed:
            folder.rmdir()
        last = (str(error).strip().splitlines() or ["refused"])[-1]
        raise KavaError(
            f"--launcher slurm: {last}", code="sweeps.slurm-refuses", key="--launcher"
        ) from None


def _join_process_group(resources: Resources) -> None:
    """Set the environment of a distributed job, as a launcher would (`kava.system.distributed`)."""
    if resources.all_processes == 1:
        return
    from submitit.helpers import TorchDistributedEnvironment

    # Each process selects its GPU of the node by its local rank, as with a launcher.
    TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
    if "OMP_NUM_THREADS" not in os.environ:  # otherwise each process uses all cores
        import torch

        os.environ["OMP_NUM_THREADS"] = str(resources.cpus)
        torch.set_num_threads(resources.cpus)


def _signal() -> int:
    """Return the signal with which submitit tells a job to stop."""
    return getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
