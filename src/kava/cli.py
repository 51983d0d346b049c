"""The commands. Each imports what it needs when it runs, so that `kava --help` is quick."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train, evaluate and ask language models that reason in latent tokens.",
)

recipe_app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.add_typer(recipe_app, name="recipes")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as train.steps=100")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="run folder to write")]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint")]


@app.command()
def quickstart(
    output: Output = None,
    full: Annotated[bool, typer.Option("--full", help="every method, three seeds: hours")] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="a few steps, to see that it runs")
    ] = False,
    seed: Annotated[list[int] | None, typer.Option(help="seed; may be repeated")] = None,
    method: Annotated[list[str] | None, typer.Option(help="only these methods")] = None,
) -> None:
    """Train KaVa and two baselines here and now, and compare them."""
    from kava import quickstart as command

    console = _console()
    command.run(command.make_plan(output, full, smoke, seed, method, console), console)


@app.command()
def train(
    recipe: str,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="a few steps on a tiny random backbone of its family")
    ] = False,
) -> None:
    """Train a recipe (YAML) into a run folder."""
    from kava import recipe as recipes
    from kava import run as runs

    resolved = recipes.load_recipe(recipe, overrides or [])
    console = _console()
    if smoke:
        from kava.smoke import smoke_run

        smoke_run(resolved, output, console)
        return
    folder = output or Path("runs") / f"{_recipe_name(recipe)}-seed{resolved.seed}"
    console.print(f"# {recipe}, resolved\n{recipes.dump(resolved)}", highlight=False, markup=False)
    result = runs.train_run(resolved, folder, console, resume)
    console.print(
        f"trained {result['steps']} steps in {result['train_seconds']:.0f} s; "
        f"checkpoint in {folder / 'checkpoint'}\nnext: kava eval {folder} --task ..., "
        f'or kava ask {folder} "question"',
        highlight=False,
    )


class ManyWords(TyperCommand):
    """Lets `--seeds` and `--set` take all words of their kind that follow: `--seeds 42 123 456`."""

    kinds: ClassVar[dict[str, str]] = {"--seeds": r"\d+", "--set": r"[\w.]+=.*"}

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further word."""
        words: list[str] = []
        for word in args:
            option = words[-2] if len(words) > 1 else None
            more = option in self.kinds and re.fullmatch(self.kinds[option], word, re.DOTALL)
            words.extend([option, word] if more else [word])
        return super().parse_args(ctx, words)


@app.command(cls=ManyWords)
def sweep(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE", help="YAML file")],
    seeds: Annotated[
        list[int] | None, typer.Option(metavar="SEED...", help="each recipe's own if not given")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder of all runs and the summary")
    ] = Path("runs/sweep"),
    task: Annotated[
        str | None, typer.Option(help="score on one task or several, with commas between")
    ] = None,
    file: Annotated[str | None, typer.Option(help="local copy of the task's rows")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the task's first rows")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE...", help="for every recipe")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list what would run and what each would cost")
    ] = False,
) -> None:
    """Train recipes with several seeds, and compare them.

    One run after the other. What is done is skipped and what was interrupted goes on, so the same
    line can be given again. Status 1 if a run failed (or would, with --dry-run).
    """
    from kava import sweep as command
    from kava.errors import KavaError

    names = [name.strip() for name in task.split(",")] if task else []
    if file and len(names) != 1:
        raise KavaError("sweep: --file holds the rows of one task; name it with --task")
    if limit and not names:
        raise KavaError("sweep: --limit is of a task; name it with --task")
    console = _console()
    runs = command.plan(recipe, seeds or [], settings or [], output, console)
    scoring = command.Scoring(names, file, limit)
    if dry_run:
        from kava.dry_run import list_runs

        raise typer.Exit(0 if list_runs(runs, scoring, console) else 1)
    outcomes = command.sweep(runs, scoring, output, console)
    if any(outcome.what == command.FAILED for outcome in outcomes):
        raise typer.Exit(1)


@app.command()
def pretrain(
    recipe: str, overrides: Overrides = None, output: Output = None, resume: Resume = False
) -> None:
    """Make a small backbone that writes its steps out."""
    from kava import recipe as recipes
    from kava.pretrain import pretrain as make

    resolved = recipes.load_recipe(recipe, overrides or [], recipes.BackboneRecipe)
    console, folder = _console(), output or Path("runs") / resolved.name
    result = make(resolved, folder, console, resume)
    console.print(
        f"{result['weights']:,} weights after {result['steps']} steps in "
        f"{result['train_seconds']:.0f} s, validation accuracy "
        f"{result['validation_accuracy']} % of {result['validation_n']}; in {folder}",
        highlight=False,
    )


@app.command("eval")
def evaluate(
    run: str,
    task: Annotated[str, typer.Option(help="one task or several, with commas between")],
    file: Annotated[str | None, typer.Option(help="local copy of the task's rows")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="only the first rows")] = None,
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
        _console(as_json),
    )
    if as_json:
        print(json.dumps(summaries, indent=1))


@app.command()
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
    from kava.ask import Settings, answer_one, answer_stream, read_words
    from kava.errors import KavaError
    from kava.run import open_reasoner

    given = [word for word in (run, question, *(settings or ())) if word is not None]
    words, plan = read_words(given, compress)
    run, question = (*words, None, None)[:2]
    if run is None and backbone is None:
        raise KavaError("ask: give a run folder, or a model with --backbone")
    if run and backbone and question is None and not Path(run).exists():
        run, question = None, run  # `kava ask --backbone FOLDER "question"`
    reasoner = open_reasoner(run or backbone, backbone if run else None)
    how = Settings(show_thoughts, iterations, max_new_tokens, plan)
    if question is not None:
        answer_one(reasoner, question, how, _console())
    else:
        answer_stream(reasoner, sys.stdin, how, _console())


@recipe_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List recipes, try them out, compare them with the paper."""
    if context.invoked_subcommand is None:
        from kava.recipe_book import show

        show(_console())


@recipe_app.command("check")
def check_recipes(
    paths: Annotated[
        list[str] | None, typer.Argument(help="recipe files or folders; all if not given")
    ] = None,
) -> None:
    """Run two steps of each recipe on a tiny random backbone."""
    from kava.recipe_book import check

    raise typer.Exit(0 if check(paths or [], _console()) else 1)


@recipe_app.command("paper")
def compare_recipes(
    folder: Annotated[
        Path | None, typer.Argument(help="with SETTING/kava.yaml in it; the shipped ones if none")
    ] = None,
) -> None:
    """Print each value of the paper's Table 6 beside the recipe's."""
    from kava.table6 import show

    raise typer.Exit(0 if show(folder, _console()) else 1)


def _console(quiet: bool = False) -> Any:
    from rich.console import Console

    return Console(quiet=quiet, soft_wrap=True)


def _recipe_name(recipe: str) -> str:
    path = Path(recipe)
    return f"{path.parent.name}-{path.stem}" if path.parent.name else path.stem
