"""Commands that measure."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from kava.cli._app import Limit, Output, TaskFile, app, make_console


@app.command("eval")
def evaluate(
    run: str,
    task: Annotated[str, typer.Option(help="one task or several, with commas between")],
    file: TaskFile = None,
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="questions answered together")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value of the task")] = None,
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
