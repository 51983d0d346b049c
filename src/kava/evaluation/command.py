"""`kava eval`: score tasks one after the other, and print one line for each."""

from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.data import note_on_related
from kava.data.tasks import Task, load_task, local_copies, read_options
from kava.errors import KavaError
from kava.evaluation.runner import check_room
from kava.evaluation.score import score_run
from kava.reasoning.open import open_reasoner, print_device
from kava.recipe.schema import Recipe
from kava.runs.folder import check_scores
from kava.runs.layout import RESULT
from kava.system import assets, distributed
from kava.system.files import check_writable
from kava.system.text import format_bytes


def evaluate_tasks(
    run: str,
    tasks: list[str],
    files: list[str] | None,
    limit: int | None,
    batch_size: int | None,
    options: list[str],
    output: Path | None,
    backbone: str | None,
    console: Console,
    iterations: Any = None,
    merge: bool = False,
    revision: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Score a reasoner on tasks and print the scores; they are saved in the run folder or `output`.

    Args:
        files: local copies of the tasks' rows, one for each task in the same order; by default the
            rows come from the Hub.
        iterations: T, or `auto`; by default that of the recipe.
        merge: whether to merge a LoRA adapter into its backbone first.

    Raises:
        KavaError: if there is no task, or a task is unknown or named twice; if rows cannot be
            loaded or are too long for the positions of the backbone; if there is not one file for
            each task; or as `result_folder`.
    """
    tasks = [name.strip() for name in tasks]
    if not tasks:
        raise KavaError(
            "eval: no task was given; pass --task, such as gsm8k or gsm8k,svamp",
            code="evaluation.no-task",
            key="--task",
        )
    if twice := next((name for name in tasks if tasks.count(name) > 1), None):
        raise KavaError(
            f"eval: task '{twice}' is given twice; give each task once",
            code="evaluation.task-twice",
            key=twice,
        )
    copies = local_copies("eval", tasks, files)
    given = read_options("eval", options)
    reasoner = distributed.main_rank_first(lambda: open_reasoner(run, backbone, revision=revision))
    if iterations is not None:
        reasoner.check_iterations(iterations)
        if output is None:
            raise KavaError(
                f"eval: with --iterations {iterations}, scores are not those of the run itself; "
                "set another folder for them with -o FOLDER",
                code="evaluation.other-iterations",
                key="--iterations",
            )
    if merge:
        reasoner.merge()
    folder = result_folder("eval", run, output)

    def load(name: str, file: str | None) -> Task:
        options = task_options(reasoner.recipe, name, given)
        return load_task(name, file=file, limit=limit, options=options)

    loaded = [
        distributed.main_rank_first(partial(load, *one)) for one in zip(tasks, copies, strict=True)
    ]
    for task in loaded:
        check_room(reasoner, task.examples)
        distributed.on_main_rank(partial(check_scores, folder, task.name))
    rows = batch_size or reasoner.recipe.eval.batch_size
    print_device(reasoner, rows, console)
    summaries = {}
    for task in loaded:
        result = score_run(reasoner, task, folder, batch_size, num_iterations=iterations)
        summary = result.summary
        summaries[task.name] = summary
        console.print(line(task.name, summary), highlight=False)
        related = note_on_related(reasoner.recipe.data.train, task.name)
        for note in [*result.notes(), *([related] if related else [])]:
            console.print(note, highlight=False)
    console.print(f"predictions and scores in {folder}", highlight=False)
    return summaries


def result_folder(command: str, run: str, output: Path | None) -> Path:
    """Return the folder for results: `output` if given, otherwise the run folder.

    A folder named like a checkpoint on the Hub, or one that ships with kava, is never created: it
    would be mistaken for that checkpoint from then on.

    Raises:
        KavaError: if `run` is a checkpoint or model outside a run folder and there is no `output`;
            if a file is in the place of the folder; or if nothing can be written there.
    """
    given = assets.expand_user(run)
    places = (given, given.parent)
    folder = output or next((p for p in places if (p / "checkpoint/kava.json").is_file()), None)
    if folder is None:
        raise KavaError(
            f"{command}: {run} is not a run folder; set the folder for the results with -o FOLDER",
            code="evaluation.not-a-run",
            key=str(run),
        )
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise KavaError(
                f"{path} is a file, and results are saved in a folder; choose another --output",
                code="evaluation.not-a-folder",
                key=str(path),
            )
    distributed.on_main_rank(lambda: check_writable(folder / RESULT))
    return folder


def line(task: str, summary: dict[str, Any]) -> str:
    """Format the scores of one task as a line."""
    rules = ", ".join(f"{rule} {value}" for rule, value in summary["accuracy_by_rule"].items())
    return (
        f"{task}: {summary['accuracy']} ± {round(summary['accuracy_se'], 2)} % of {summary['n']} "
        f"(± is one standard error; by rule: {rules}); "
        f"{summary['forward_passes']} forward passes, "
        f"{summary['ms_per_question']} ms per question alone, "
        f"{summary['ms_per_question_in_batch']} in a batch of {summary['batch_size']} "
        f"({summary['tokens_per_second']} tokens/s, at most "
        f"{format_bytes(summary['peak_memory']['bytes'])} of {summary['peak_memory']['of']} memory)"
        + (f"; {summary['unfinished']} cut off" if summary["unfinished"] else "")
        + (f"; {summary['math_verify']['note']}" if "math_verify" in summary else "")
    )


def task_options(recipe: Recipe, name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a task; for `synthetic`, they default to those of the training data."""
    data = recipe.data
    return {**(data.options if data.train == name == "synthetic" else {}), **given}
