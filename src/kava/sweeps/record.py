"""Record the runs and jobs of a sweep in its folder.

OUTPUT/sweep.json        every run that was requested there: its recipe and its tasks
OUTPUT/slurm/jobs.jsonl  one line for each submitted job; the last line of a run counts
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from kava.errors import KavaError, truncate
from kava.reasoning.resolve import validate_resolved
from kava.recipe import schema
from kava.sweeps.attempt import Run, Scoring
from kava.system import links
from kava.system.files import write_json

PLAN, FOLDER, JOBS = "sweep.json", "slurm", "jobs.jsonl"


@dataclass(frozen=True)
class PlannedRun:
    """A run, and the tasks that it is to be scored on."""

    run: Run
    scoring: Scoring


@dataclass(frozen=True)
class SlurmJob:
    """A job that was submitted for a run.

    run: name of the run's folder.
    job: SLURM's id, `12` or `12_3`.
    log: file that the job prints to.
    cluster: the cluster of submitit; `local` is a separate process that SLURM does not know.
    """

    run: str
    job: str
    log: str
    cluster: str = "slurm"
    time: str = ""


def add_to_plan(output: Path, runs: Sequence[Run], scoring: Scoring) -> None:
    """Add runs to the plan of the folder; a run that is already there gets the new tasks."""
    plan = _read(output) if (output / PLAN).is_file() else {}
    new = {run.folder.name: _entry(run, scoring) for run in runs}
    if {**plan, **new} != plan:
        write_json(output / PLAN, {"runs": {**plan, **new}})


def load_plan(output: Path) -> list[PlannedRun]:
    """Return every run of the folder's plan, in the order in which they were requested.

    Raises:
        KavaError: there is no plan, or it is not one; or a run of it would lie elsewhere.
    """
    if not (output / PLAN).is_file():
        raise KavaError(
            f"{output}: contains no sweep ({PLAN} is missing; `kava sweep -o FOLDER` writes it)",
            code="sweeps.no-sweep",
            key=str(output),
        )
    where = str(output / PLAN)
    found = []
    scorings: dict[str, Scoring] = {}  # shared between runs, so that rows are loaded once
    for name, entry in _read(output).items():
        recipe = validate_resolved(entry["recipe"], f"{where}, {name}")
        key = entry["tasks"], entry["files"], entry["limit"]
        scoring = scorings.setdefault(repr(key), Scoring(*key))
        found.append(PlannedRun(Run(entry["name"], recipe, output / name), scoring))
    return found


def add_jobs(output: Path, jobs: Iterable[SlurmJob]) -> None:
    """Append submitted jobs to the folder's list."""
    lines = "".join(json.dumps(asdict(job)) + "\n" for job in jobs)
    links.append(output / FOLDER / JOBS, lines, output)


def jobs(output: Path) -> dict[str, SlurmJob]:
    """Return the last job of each run, by the name of its folder.

    Raises:
        KavaError: if a line is not a job.
    """
    file = output / FOLDER / JOBS
    if not file.is_file():
        return {}
    found = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            job = SlurmJob(**json.loads(line))
            if not (_is_name(job.log) and re.fullmatch(r"[0-9]+(_[0-9]+)?", job.job)):
                raise ValueError
        except (ValueError, TypeError):
            raise KavaError(
                f"{file}, line {number}: not a kava job; delete the line",
                code="sweeps.not-a-job",
                key=str(file),
            ) from None
        found[job.run] = job
    return found


def _entry(run: Run, scoring: Scoring) -> dict[str, Any]:
    return {
        "name": run.name,
        "recipe": run.recipe.model_dump(by_alias=True),
        "tasks": list(scoring.names),
        "files": list(scoring.files),
        "limit": scoring.limit,
    }


def _read(output: Path) -> dict[str, Any]:
    file = output / PLAN
    try:
        plan = json.loads(file.read_text(encoding="utf-8"))
        _Plan.model_validate(plan, strict=True)
    except ValueError:  # invalid JSON, encoding or content
        raise KavaError(
            f"{file}: not the plan of a sweep; move the file away and run `kava sweep` again",
            code="sweeps.not-a-plan",
            key=str(file),
        ) from None
    for name, entry in plan["runs"].items():
        for one in (name, entry["name"]):
            if not _is_name(one):
                raise KavaError(
                    f"{file}: run {truncate(one)!r}: not a plain folder name; delete the run",
                    code="sweeps.run-elsewhere",
                    key=one,
                )
    return plan["runs"]


def _is_name(text: str) -> bool:
    """Whether it names a file or folder in one place, and on one line."""
    return text not in ("", ".", "..") and not re.search(r"[/\\\x00-\x1f\x7f-\x9f]", text)


class _Entry(schema.Section):
    """One run as `_entry` writes it.

    Its recipe is validated separately, so that error messages name the recipe's key.
    """

    name: str
    recipe: dict[str, Any]
    tasks: list[str]
    files: list[str]
    limit: int | None = Field(ge=1)


class _Plan(schema.Section):
    runs: dict[str, _Entry] = Field(min_length=1)
