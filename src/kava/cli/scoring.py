"""Commands that score models, and compare and show the results."""

import json
from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import (
    Iterations,
    Limit,
    Merge,
    Output,
    Revision,
    TaskFile,
    TaskFiles,
    app,
    examples,
    make_console,
    names,
)
from kava.system import distributed
from kava.system.text import printable

data_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    epilog=examples(
        "kava data check train.jsonl --against gsm8k,svamp",
        "kava data check train.jsonl --debug recipes/quickstart/kava.yaml",
    ),
)
app.add_typer(data_app, name="data")
Options = Annotated[
    list[str] | None, typer.Option("--option", help="option of the task, as key=value")
]
DataOptions = Annotated[
    list[str] | None,
    typer.Option("--data-option", help="option of the training examples, as data.options"),
]


@app.command(
    "eval",
    epilog=examples(
        "kava eval runs/mine --task gsm8k,svamp",
        "kava eval runs/mine --task gsm8k --file gsm8k_test.jsonl --limit 100",
    ),
)
def evaluate(
    run: str,
    task: Annotated[str, typer.Option(help="one task or several, separated by commas")],
    file: TaskFiles = None,
    limit: Limit = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="number of questions per batch")
    ] = None,
    option: Options = None,
    iterations: Iterations = None,
    output: Output = None,
    backbone: Annotated[
        str | None, typer.Option(help="new location of the backbone, if it has moved")
    ] = None,
    merge: Merge = False,
    revision: Revision = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the scores as JSON")] = False,
) -> None:
    """Score a run, a checkpoint or a plain backbone on tasks."""
    from kava.evaluation.command import evaluate_tasks

    summaries = evaluate_tasks(
        run,
        names(task),
        file,
        limit,
        batch_size,
        option or [],
        output,
        backbone,
        make_console(as_json),
        iterations,
        merge,
        revision,
    )
    if as_json and distributed.is_main():
        print(json.dumps(summaries, indent=1))


Results = Annotated[
    list[str],
    typer.Argument(metavar="RESULTS...", help="run folders, or folders that contain them"),
]


@app.command(
    epilog=examples("kava table runs/matrix -o tables", "kava table runs/matrix --paper -o tables")
)
def table(
    results: Results,
    paper: Annotated[
        bool,
        typer.Option("--paper", help="the paper's tables, with published numbers next to ours"),
    ] = False,
    task: Annotated[str | None, typer.Option(help="only these tasks, separated by commas")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="folder for .md, .csv and .tex")
    ] = None,
) -> None:
    """Print results as a table, with -o as Markdown, CSV and LaTeX."""
    from kava.errors import KavaError
    from kava.report.results import find
    from kava.report.table import paper_tables, results_table

    if paper and task:
        raise KavaError(
            "table: --paper shows every task of the paper; remove --task",
            code="cli.task-with-paper",
            key="--task",
        )
    groups = find(results)
    tables = paper_tables(groups) if paper else [results_table(groups, names(task))]
    files = [file for one in tables for file in (one.write(output) if output else ())]
    print(printable("\n".join(one.markdown() for one in tables)), end="")
    if files:
        print(printable(f"\nwritten: {', '.join(map(str, files))}"))


@app.command(
    epilog=examples("kava plot runs/matrix -o plots", "kava plot runs/matrix --task gsm8k -o plots")
)
def plot(
    results: Results,
    task: Annotated[str | None, typer.Option(help="only these tasks, separated by commas")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the pictures")] = Path(
        "plots"
    ),
) -> None:
    """Draw accuracy against cost, M, T and steps; training curves."""
    from kava.report.draw import draw
    from kava.report.results import find

    for line in draw(find(results), names(task), output):
        print(printable(line))


@app.command(
    epilog=examples("kava compare runs/a runs/b --task gsm8k", "kava compare runs/a runs/b --json")
)
def compare(
    run_a: str,
    run_b: str,
    task: Annotated[
        str | None, typer.Option(help="task to compare, if the runs were scored on several")
    ] = None,
    rule: Annotated[
        str, typer.Option(help="rule for extracting and comparing answers")
    ] = "numeric",
    seed: Annotated[int, typer.Option(min=0, help="random seed of the bootstrap")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """Compare two runs on the same questions.

    A run is a run folder or a file of predictions.
    """
    from kava.errors import KavaError
    from kava.evaluation.compare import compare as compare_runs
    from kava.evaluation.compare import format_summary, tasks_of

    names(task)  # raises for an empty name, which is not the same as no --task
    paths = Path(run_a), Path(run_b)
    for path in paths:
        if not path.exists():
            raise KavaError(
                f"{path}: no such run folder or predictions file",
                code="cli.no-such-file",
                key=str(path),
            )
    folders = [path for path in paths if path.is_dir()]
    shared = [t for t in (tasks_of(folders[0]) if folders else []) if t in tasks_of(folders[-1])]
    if task is None and folders:
        if len(shared) != 1:
            scored = "; ".join(f"{f}: {', '.join(tasks_of(f)) or 'none'}" for f in folders)
            raise KavaError(
                f"compare: choose a --task that both were scored on ({scored})",
                code="cli.which-task",
                key="--task",
            )
        task = shared[0]
    found = compare_runs(*paths, task or paths[0].stem, rule, seed)
    if as_json:
        print(json.dumps(found.record(), indent=1))
    else:
        print(printable(format_summary(run_a, run_b, found)))


@app.command(
    epilog=examples(
        "kava score predictions.jsonl --task gsm8k",
        "kava score predictions.jsonl --data rows.jsonl --json",
    )
)
def score(
    predictions: Annotated[
        str,
        typer.Argument(help="file with `prediction` and optionally `id`, or samples of lm-eval"),
    ],
    task: Annotated[str | None, typer.Option(help="task that the predictions answer")] = None,
    data: Annotated[
        str | None,
        typer.Option(help="or a file of rows with `question`, `answer` and optionally `id`"),
    ] = None,
    file: TaskFile = None,
    limit: Limit = None,
    option: Options = None,
    field: Annotated[
        str | None, typer.Option(help="field of the predictions, if it is not `prediction`")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print counts as JSON")] = False,
) -> None:
    """Score predictions from anywhere under every rule.

    Predictions are matched to examples by id if each has one, otherwise by order.
    """
    from kava.data.tasks import read_options
    from kava.evaluation.score_file import score_file, table

    given = read_options("score", option or [])
    result = score_file(predictions, task, data, file, limit, given, field)
    if as_json:
        print(json.dumps(result))
    else:
        make_console().print(table(result, f"{Path(predictions).name} on {task or data}"))


@data_app.callback()
def data() -> None:
    """Check training rows before training."""


@data_app.command(
    "check",
    epilog=examples(
        "kava data check train.jsonl --against gsm8k,svamp",
        "kava data check train.jsonl --against gsm8k --against-file gsm8k_test.jsonl --strict",
        "kava data check train.jsonl --debug recipes/quickstart/kava.yaml",
    ),
)
def check_data(
    file: Annotated[
        str, typer.Argument(help="training examples: a file, or the name of a data set")
    ],
    against: Annotated[
        str | None, typer.Option(help="one task or several, separated by commas")
    ] = None,
    against_file: Annotated[
        list[str] | None,
        typer.Option(
            "--against-file",
            "--file",
            help="local copy of the task's rows; for several tasks, one for each, in order",
        ),
    ] = None,
    option: Options = None,
    data_option: DataOptions = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="rows that differ only in numbers are leaks too")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print every leak as JSON")] = False,
    debug: Annotated[
        str | None,
        typer.Option(
            metavar="RECIPE",
            help="instead, show the tokens, masks and labels of three rows, as this recipe trains",
        ),
    ] = None,
) -> None:
    """Find training rows that are test questions.

    The exit status is 1 if a row equals a test question, ignoring whitespace, punctuation and case.
    Rows that differ from one only in numbers are listed, and count as equal with --strict.
    """
    from kava.data.tasks import read_options
    from kava.errors import KavaError
    from kava.training.leaks import check

    given = read_options("data check", option or [])
    own = read_options("data check", data_option or [])
    if (against is None) == (debug is None):
        raise KavaError(
            "data check: pass either --against TASK, to find test questions, or --debug RECIPE, "
            "to see rows as trained on",
            code="cli.against-or-debug",
            key="--against",
        )
    for name, is_given in (
        ("--against-file", against_file), ("--option", option), ("--strict", strict),
        ("--json", as_json),
    ):  # fmt: skip
        if debug is not None and is_given:
            raise KavaError(
                f"data check: {name} belongs to --against; leave it out with --debug",
                code="cli.not-with-debug",
                key=name,
            )
    if debug is not None:
        from kava.data import load_examples
        from kava.reasoning.reasoner import Reasoner
        from kava.reasoning.resolve import load_resolved
        from kava.training.shown_rows import ROWS, show_rows

        rows = load_examples(file, "train", limit=ROWS, options=own)
        for line in show_rows(Reasoner.build(load_resolved(debug)), rows):
            print(printable(line))
        return
    tasks = names(against, "--against")
    raise typer.Exit(check(file, tasks, against_file, given, strict, as_json, make_console(), own))
