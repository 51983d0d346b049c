"""The command `kava inspect`: find the question, and write the results to files."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from kava.data import load_file
from kava.data.tasks import load_task
from kava.errors import KavaError, unknown_name
from kava.evaluation.command import task_options
from kava.inspect.look import Inspection, inspect_question
from kava.inspect.page import is_page, page
from kava.inspect.terminal import show
from kava.reasoning.open import open_reasoner, print_device
from kava.reasoning.reasoner import Reasoner
from kava.system import assets, links
from kava.system.files import write_whole
from kava.system.text import PlainConsole, check_text


@dataclass(frozen=True)
class ExampleToInspect:
    """A question, with its steps and answer if known; `row` is the id of the example it is from."""

    question: str
    steps: Sequence[str] | None = None
    answer: str | None = None
    row: str | None = None


@dataclass(frozen=True)
class RowChoice:
    """Where an example comes from: a task, a file (the task's, or one of examples), and its id."""

    task: str | None = None
    file: str | None = None
    id: str | None = None


def inspect(
    run: str,
    question: str | None,
    steps: Sequence[str] | None,
    answer: str | None,
    rows: RowChoice,
    output: Path | None,
    as_json: Path | None,
    num_iterations: int | None,
    max_new_tokens: int,
    backbone: str | None,
    console: Console,
    revision: str | None = None,
) -> Path:
    """Inspect one answer, show it in the terminal, and write the page; return the page's path.

    Raises:
        KavaError: no question or too many, an unknown example, a run without latents, or an
            existing file that must not be overwritten.
    """
    check(question, steps, answer, rows)
    reasoner = open_reasoner(run, backbone, revision=revision)
    example = (
        ExampleToInspect(question, steps, answer) if question is not None else find(reasoner, rows)
    )
    file = output or default_file(run, example.question)
    # Without -o the page is written into a subfolder of the run's folder.
    below = file.parent if output else file.parent.parent
    check_overwrite(file, below)
    if as_json:
        check_overwrite(as_json)
    record = inspect_question(
        reasoner,
        example.question,
        example.steps,
        example.answer,
        row=example.row,
        num_iterations=num_iterations,
        max_new_tokens=max_new_tokens,
        run=run,
    )
    print_device(reasoner, 1, PlainConsole(stderr=True, soft_wrap=True))
    show(record, console)
    console.print()
    write(file, page(record), "page", console, below)
    if as_json:
        write(as_json, dump(record), "numbers", console)
    return file


def check(
    question: str | None, steps: Sequence[str] | None, answer: str | None, rows: RowChoice
) -> None:
    """Raise a KavaError if the arguments do not name exactly one valid question."""
    from_rows = rows.task or rows.file
    if question is None and not from_rows:
        raise KavaError(
            "inspect: pass a question in quotes, or choose a row with --task TASK --id ROW",
            code="inspect.no-question",
            key="question",
        )
    if question is not None and (from_rows or rows.id):
        raise KavaError(
            "inspect: pass either a question or a row (--task, --file and --id), not both",
            code="inspect.question-and-row",
            key="question",
        )
    if from_rows and not rows.id:
        raise KavaError("inspect: choose a row with --id", code="inspect.no-row", key="--id")
    if from_rows and (steps or answer):
        raise KavaError(
            "inspect: a row has its own steps and answer; remove --steps and --answer",
            code="inspect.steps-of-a-row",
            key="--steps" if steps else "--answer",
        )
    if question is not None and not question.strip():
        raise KavaError(
            "inspect: the question is empty", code="inspect.empty-question", key="question"
        )
    check_text(question or "", "inspect: the question")
    check_text(answer or "", "inspect: the answer")
    for number, step in enumerate(steps or (), start=1):
        check_text(step, f"inspect: step {number}")


def find(reasoner: Reasoner, rows: RowChoice) -> ExampleToInspect:
    """Return the example with the given id.

    Raises:
        KavaError: the examples cannot be loaded, or none has this id.
    """
    if rows.task:
        options = task_options(reasoner.recipe, rows.task, {})
        examples = load_task(rows.task, file=rows.file, options=options).examples
    else:
        examples = load_file(rows.file)
    for example in examples:
        if example.id == rows.id:
            return ExampleToInspect(example.question, example.steps, example.answer, example.id)
    source = rows.task or rows.file
    known = [example.id for example in examples]
    if len(known) > 20:  # too many to be listed
        error = unknown_name("", rows.id, known, code="inspect.unknown-row")
        close = str(error).partition("; ")[2] if "did you mean" in str(error) else ""
        close = close or f"ids go from {known[0]} to {known[-1]}"
        raise KavaError(
            f"unknown row of {source} '{rows.id}'; {close}", code="inspect.unknown-row", key=rows.id
        )
    raise unknown_name(f"row of {source}", rows.id, known, code="inspect.unknown-row")


def default_file(run: str, question: str) -> Path:
    """Return the page's default path: RUN/inspect/SLUG.html.

    It is `inspect.html` in the working directory for a checkpoint that is shipped with the project
    and for a run that is not a folder.
    """
    folder = assets.find(run) if assets.expand_user(run).exists() else None
    shipped = [root / "checkpoints" for root in assets.roots()]
    if folder is None or any(folder.resolve().is_relative_to(s.resolve()) for s in shipped):
        return Path("inspect.html")
    folder = folder.parent if folder.resolve().name == "checkpoint" else folder
    return folder / "inspect" / f"{slug(question)}.html"


def slug(question: str) -> str:
    """Return a file name for a question: its first words, and a short hash to distinguish it."""
    words = "-".join(re.findall(r"[a-z0-9]+", question.lower()))[:40].strip("-")
    digest = hashlib.blake2b(question.encode(), digest_size=3).hexdigest()
    return f"{words}-{digest}" if words else digest


def check_overwrite(file: Path, below: Path | None = None) -> None:
    """Raise a KavaError if the path is a link or holds a file not written by `kava inspect`."""
    links.check(file, below)
    if not file.exists():
        return
    if file.is_dir():
        raise KavaError(
            f"{file} is a folder; choose a file", code="inspect.is-a-folder", key=str(file)
        )
    if not (is_page(file) or _is_dump(file)):
        raise KavaError(
            f"{file} exists and was not written by kava inspect; choose another file",
            code="inspect.file-of-something-else",
            key=str(file),
        )


def write(file: Path, text: str, what: str, console: Console, below: Path | None = None) -> None:
    """Write a file and report it, also whether it replaced an earlier file of `kava inspect`."""
    replaced = " (replaced the one that was there)" if file.exists() else ""
    write_whole(file, text, below)
    console.print(f"{what}: {file}{replaced}", highlight=False, markup=False)


def dump(record: Inspection) -> str:
    """Return all numbers as JSON."""
    return (
        json.dumps({"kava inspect": 1, **record.tree()}, ensure_ascii=False, allow_nan=False) + "\n"
    )


def _is_dump(file: Path) -> bool:
    with file.open(encoding="utf-8", errors="replace") as opened:
        return opened.read(20).startswith('{"kava inspect":')
