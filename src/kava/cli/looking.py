"""Commands that look inside a model, an answer or a training."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import Limit, ManyWords, Output, TaskFile, app, examples, make_console


@app.command(
    epilog=examples(
        'kava ask runs/mine "Ann has 4 pens and buys 3. How many?" --show-thoughts',
        "cat questions.txt | kava ask runs/mine",
    )
)
def ask(
    run: Annotated[str | None, typer.Argument(help="run or checkpoint folder")] = None,
    question: Annotated[str | None, typer.Argument(help="read from input if not given")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="of --compress, such as budget=128"),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="a plain model instead, or where the run's backbone lies now")
    ] = None,
    compress: Annotated[
        str | None,
        typer.Option(metavar="EVICTION", help="keep the cache small, such as rkv_decoding"),
    ] = None,
    show_thoughts: Annotated[
        bool, typer.Option("--show-thoughts", help="what each latent decodes to")
    ] = False,
    iterations: Annotated[int | None, typer.Option(min=0, help="T, if not the recipe's")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Ask a question, or one per line from the terminal or a pipe."""
    from kava.errors import KavaError
    from kava.inspect.ask import Settings, answer_one, answer_stream, read_words
    from kava.reasoning.open import open_reasoner

    given = [word for word in (run, question, *(settings or ())) if word is not None]
    words, plan = read_words(given, compress)
    run, question = (*words, None, None)[:2]
    if run is None and backbone is None:
        raise KavaError(
            "ask: give a run folder, or a model with --backbone",
            code="cli.no-model",
            key="--backbone",
        )
    # `kava ask --backbone FOLDER "question"`. A question may be longer than a path can be; then
    # os.path.exists returns False.
    if run and backbone and question is None and not os.path.exists(run):
        run, question = None, run
    reasoner = open_reasoner(run or backbone, backbone if run else None)
    how = Settings(show_thoughts, iterations, max_new_tokens, plan)
    if question is not None:
        answer_one(reasoner, question, how, make_console())
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are not UTF-8 are read too, and reported later with their line number.
            sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
        answer_stream(reasoner, sys.stdin, how, make_console())


@app.command(
    cls=ManyWords,
    epilog=examples(
        "kava inspect runs/mine --task synthetic --id synthetic-test-4 -o page.html",
        'kava inspect runs/mine "question" --steps "<<4+3=7>>" --answer 7 --json look.json',
    ),
)
def inspect(
    run: Annotated[str, typer.Argument(help="run or checkpoint folder")],
    question: Annotated[str | None, typer.Argument(help="or a row: --task TASK --id ROW")] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(metavar="STEP...", help="written steps; the model writes them if not given"),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="the right one; the model's own if not given")
    ] = None,
    task: Annotated[str | None, typer.Option(help="a row of this task, named by --id")] = None,
    file: Annotated[
        str | None, typer.Option(help="local copy of the task's rows, or examples of your own")
    ] = None,
    id: Annotated[
        str | None, typer.Option(metavar="ROW", help="of --task, or of the examples in --file")
    ] = None,
    iterations: Annotated[int | None, typer.Option(min=0, help="T, if not the recipe's")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="page to write; RUN/inspect/... if not given"),
    ] = None,
    as_json: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write the numbers too")
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
    backbone: Annotated[str | None, typer.Option(help="where the backbone lies now")] = None,
) -> None:
    """Look inside one answer: a page and a view in the terminal.

    They show what latents decode to after each iteration, how far they move, how similar the
    student's and the teacher's KV caches are, which chain-of-thought tokens each head keeps, and
    what the answer attends to.
    """
    from kava.inspect import command

    rows = command.Rows(task, file, id)
    page = command.inspect(
        run,
        question,
        steps,
        answer,
        rows,
        output,
        as_json,
        iterations,
        max_new_tokens,
        backbone,
        make_console(),
    )
    if open_page:
        typer.launch(page.resolve().as_uri())


@app.command(
    epilog=examples(
        "kava ablate runs/mine --task synthetic --limit 200",
        "kava ablate runs/mine --task gsm8k --file gsm8k_test.jsonl -o runs/ablation",
    )
)
def ablate(
    run: str,
    task: Annotated[str, typer.Option(help="whose questions are answered")],
    file: TaskFile = None,
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="questions answered together")
    ] = None,
    option: Annotated[list[str] | None, typer.Option(help="key=value of the task")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of noise, orders and partners")] = 0,
    output: Output = None,
    backbone: Annotated[str | None, typer.Option(help="where the backbone lies now")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Does it think? Accuracy when latents are zeroed or swapped."""
    from kava.data.tasks import load_task, read_options
    from kava.evaluation.ablation import PLOT, ablate_task, check
    from kava.evaluation.command import result_folder, task_options
    from kava.reasoning.open import open_reasoner
    from kava.report.ablation import ablation_table, draw

    given, console = read_options("ablate", option or []), make_console(as_json)
    reasoner = open_reasoner(run, backbone)
    check(reasoner)
    folder = result_folder("ablate", run, output)
    options = task_options(reasoner.recipe, task, given)
    loaded = load_task(task, file=file, limit=limit, options=options)
    table = ablate_task(reasoner, loaded, folder, batch_size, seed)
    draw(table, folder / PLOT)
    if as_json:
        print(json.dumps(table, indent=1))
    console.print(ablation_table(table))
    console.print(f"table, plot and predictions in {folder}", highlight=False)


@app.command(
    epilog=examples(
        "kava watch runs/mine",
        "kava watch runs/mine --once",
    )
)
def watch(
    run: Path,
    once: Annotated[bool, typer.Option("--once", help="show it as it is now, and end")] = False,
) -> None:
    """Watch a running training in the terminal."""
    from kava.runs.watch import watch as follow

    follow(run, make_console(), once)
