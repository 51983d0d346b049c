"""Commands that measure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import Limit, Output, TaskFile, app, make_console

data_app = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)
app.add_typer(data_app, name="data")
Options = Annotated[list[str] | None, typer.Option("--option", help="key=value of the task")]


@app.command("eval")
def evaluate(
    run: str,
    task: Annotated[str, typer.Option(help="one task or several, with commas between")],
    file: TaskFile = None,
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="questions answered together")
    ] = None,
    option: Options = None,
    output: Output = None,
    backbone: Annotated[str | None, typer.Option(help="where the backbone lies now")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
) -> None:
    """Score a run, a checkpoint or a plain backbone on tasks."""
    from kava.evaluate.command import evaluate_tasks

    summaries = evaluate_tasks(
        run,
        task.split(","),
        file,
        limit,
        batch_size,
        option or [],
        output,
        backbone,
        make_console(as_json),
    )
    if as_json:
        print(json.dumps(summaries, indent=1))


@app.command()
def score(
    predictions: Annotated[Path, typer.Argument(help="JSONL with `prediction`, perhaps `id`")],
    task: Annotated[str | None, typer.Option(help="what they answer")] = None,
    data: Annotated[
        Path | None, typer.Option(help="or rows with `question`, `answer`, perhaps `id`")
    ] = None,
    file: TaskFile = None,
    limit: Limit = None,
    option: Options = None,
    as_json: Annotated[bool, typer.Option("--json", help="print counts as JSON")] = False,
) -> None:
    """Score predictions from anywhere under every rule.

    Predictions belong to rows by id if each has one, else by order.
    """
    from kava.evaluate.score_file import score_file, table
    from kava.tasks import read_options

    result = score_file(predictions, task, data, file, limit, read_options("score", option or []))
    if as_json:
        print(json.dumps(result))
    else:
        make_console().print(table(result, f"{predictions.name} on {task or data}"))


@data_app.callback()
def data() -> None:
    """Look at rows before they are trained on."""


@data_app.command("check")
def check_data(
    file: Annotated[str, typer.Argument(help="training rows: a file, or a data set's name")],
    against: Annotated[str, typer.Option(help="one task or several, with commas between")],
    against_file: Annotated[
        str | None, typer.Option("--against-file", "--file", help="local copy of the task's rows")
    ] = None,
    option: Options = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="equal up to numbers is a leak too")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print every leak as JSON")] = False,
) -> None:
    """Find training rows that are test questions.

    Status 1 if a row equals one (blanks, signs and case aside); rows that equal one but for their
    numbers are listed, and count with --strict.
    """
    from kava.leaks import check
    from kava.tasks import read_options

    names = [name.strip() for name in against.split(",")]
    given = read_options("data check", option or [])
    raise typer.Exit(check(file, names, against_file, given, strict, as_json, make_console()))
