"""Commands that look inside a model, an answer or a training."""

import io
import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import (
    Dtype,
    Iterations,
    Limit,
    Output,
    QuestionCommand,
    Revision,
    TaskFile,
    app,
    examples,
    make_console,
)


@app.command(
    cls=QuestionCommand,
    epilog=examples(
        'kava ask runs/mine "Ann has 4 pens and buys 3. How many?" --show-thoughts',
        "cat questions.txt | kava ask runs/mine",
    ),
)
def ask(
    run: Annotated[str | None, typer.Argument(help="run or checkpoint folder")] = None,
    question: Annotated[
        str | None, typer.Argument(help="read from standard input if not given")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="settings of --compress, such as budget=128"),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="a plain model (folder, GGUF file or Hub name) instead of a run, or new location "
            "of the run's backbone"
        ),
    ] = None,
    revision: Revision = None,
    dtype: Dtype = None,
    compress: Annotated[
        str | None,
        typer.Option(metavar="EVICTION", help="compress the KV cache, such as with rkv_decoding"),
    ] = None,
    show_thoughts: Annotated[
        bool, typer.Option("--show-thoughts", help="show what each latent decodes to")
    ] = False,
    iterations: Iterations = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Ask a question, or one per line from the terminal or a pipe."""
    from kava.errors import KavaError
    from kava.inspect.ask import Settings, answer_one, answer_stream, check_question, read_words
    from kava.reasoning.open import open_reasoner, print_device

    given = [word for word in (run, question, *(settings or ())) if word is not None]
    words, plan = read_words(given, compress)
    run, question = (*words, None, None)[:2]
    if run is None and backbone is None:
        raise KavaError(
            "ask: pass a run folder, or a model with --backbone",
            code="cli.no-model",
            key="--backbone",
        )
    # `kava ask --backbone FOLDER "question"`. A question may be longer than a path can be; then
    # os.path.exists returns False.
    if run and backbone and question is None and not os.path.exists(run):
        run, question = None, run
    reasoner = open_reasoner(run or backbone, backbone if run else None, dtype, revision)
    how = Settings(show_thoughts, iterations, max_new_tokens, plan)
    if question is not None:
        check_question(reasoner, question, how)
    print_device(reasoner, 1, make_console(stderr=True))
    if question is not None:
        answer_one(reasoner, question, how, make_console())
    else:
        if isinstance(sys.stdin, io.TextIOWrapper):
            # Bytes that are not UTF-8 are read too, and reported later with their line number.
            # A byte-order mark, which some programs write first, is no part of a question.
            sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
        answer_stream(reasoner, sys.stdin, how, make_console())


@app.command(
    cls=QuestionCommand,
    epilog=examples(
        "kava inspect runs/mine --task synthetic --id synthetic-test-4 -o page.html",
        'kava inspect runs/mine "question" --steps "<<4+3=7>>" --answer 7 --json look.json',
    ),
)
def inspect(
    run: Annotated[str, typer.Argument(help="run or checkpoint folder")],
    question: Annotated[
        str | None, typer.Argument(help="question in quotes; or use --task TASK --id ROW")
    ] = None,
    steps: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STEP...",
            help="steps of the chain of thought; the model writes them if not given",
        ),
    ] = None,
    answer: Annotated[
        str | None, typer.Option(help="correct answer; the model's own if not given")
    ] = None,
    task: Annotated[str | None, typer.Option(help="task that contains the row")] = None,
    file: Annotated[
        str | None,
        typer.Option(help="local copy of the task's rows, or a file of your own examples"),
    ] = None,
    id: Annotated[
        str | None, typer.Option(metavar="ROW", help="id of a row of --task or --file")
    ] = None,
    iterations: Annotated[
        int | None, typer.Option(min=0, help="number of iterations T; the recipe's if not given")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="page to write; RUN/inspect/... if not given"),
    ] = None,
    as_json: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="also write the numbers to this file"),
    ] = None,
    open_page: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
    backbone: Annotated[
        str | None, typer.Option(help="new location of the backbone, if it has moved")
    ] = None,
    revision: Revision = None,
) -> None:
    """Look inside one answer: a page and a view in the terminal.

    They show what latents decode to after each iteration, how far they move, how similar the
    student's and the teacher's KV caches are, which chain-of-thought tokens each head keeps, and
    what the answer attends to.
    """
    from kava.inspect import command

    rows = command.RowChoice(task, file, id)
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
        revision,
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
    task: Annotated[str, typer.Option(help="task whose questions are answered")],
    file: TaskFile = None,
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="number of questions per batch")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="option of the task, as key=value")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(
            "--slice",
            help="part of the latents' cache to exchange, such as keys, values:4 or both:0-3; "
            "by default keys, values and each half of the layers",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="random seed of the interventions")] = 0,
    output: Output = None,
    backbone: Annotated[
        str | None, typer.Option(help="new location of the backbone, if it has moved")
    ] = None,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the table as JSON")] = False,
) -> None:
    """Measure the accuracy when latents or their cache are changed."""
    from kava.data.tasks import load_task, read_options
    from kava.evaluation.ablation import PLOT, ablate_task, check
    from kava.evaluation.command import result_folder, task_options
    from kava.reasoning.open import open_reasoner, print_device
    from kava.report.ablation import ablation_table, draw, slices_table

    given, console = read_options("ablate", option or []), make_console(as_json)
    reasoner = open_reasoner(run, backbone, revision=revision)
    check(reasoner)
    rows = batch_size or reasoner.recipe.eval.batch_size
    print_device(reasoner, rows, make_console(stderr=True))
    folder = result_folder("ablate", run, output)
    options = task_options(reasoner.recipe, task, given)
    loaded = load_task(task, file=file, limit=limit, options=options)
    table = ablate_task(reasoner, loaded, folder, batch_size, seed, parts=part or ())
    draw(table, folder / PLOT)
    if as_json:
        print(json.dumps(table, indent=1))
    console.print(ablation_table(table))
    console.print(slices_table(table))
    console.print(f"table, plot and predictions in {folder}", highlight=False)


@app.command(epilog=examples("kava watch runs/mine", "kava watch runs/mine --once"))
def watch(
    run: Path,
    once: Annotated[
        bool, typer.Option("--once", help="show the current state once, then exit")
    ] = False,
) -> None:
    """Watch a running training in the terminal."""
    from kava.runs.watch import watch as follow

    follow(run, make_console(), once)
