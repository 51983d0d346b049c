"""Ask SLURM for the states of jobs. SLURM forgets a job minutes after its end (MinJobAge)."""

import shutil
import subprocess
from collections.abc import Iterable

from kava.errors import KavaError

#: States of a job that will not run again; in any other state it waits, runs, or is about to.
ENDED_STATES = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY",
    "PREEMPTED", "REVOKED", "TIMEOUT",
}  # fmt: skip
#: States of a job that is waiting to run.
WAITING_STATES = {
    "PENDING",
    "REQUEUED",
    "REQUEUE_FED",
    "REQUEUE_HOLD",
    "RESV_DEL_HOLD",
    "SPECIAL_EXIT",
}


def states(jobs: Iterable[str]) -> dict[str, str]:
    """Return the state of each job (`12`) or array element (`12_3`); forgotten jobs are left out.

    Raises:
        KavaError: if there is no SLURM, or it does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return {}
    if shutil.which("squeue") is None:
        raise KavaError(
            "squeue: SLURM was not found on this machine; use the machine that submitted the jobs",
            code="system.no-slurm",
            key="squeue",
        )
    numbers = sorted({job.partition("_")[0] for job in wanted})
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--states=all", "--format=%i %T",
         f"--jobs={','.join(numbers)}"],
        capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode and "Invalid job id" not in done.stderr:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise KavaError(
            f"squeue: {last}; try again when SLURM responds",
            code="system.slurm-does-not-answer",
            key="squeue",
        )
    found = (line.split() for line in done.stdout.splitlines())
    return {words[0]: words[1] for words in found if len(words) == 2 and words[0] in wanted}


def is_active(state: str | None) -> bool:
    """Whether a job in this state waits, runs or is about to run."""
    return state is not None and state not in ENDED_STATES
