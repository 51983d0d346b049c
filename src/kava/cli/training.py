"""Commands that train, and those about recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import (
    Limit,
    ManyWords,
    Output,
    Overrides,
    Resume,
    TaskFile,
    app,
    make_console,
    names,
)

recipe_app = typer.Typer(add_completion=False, rich_markup_mode=None)
app.add_typer(recipe_app, name="recipes")


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

    console = make_console()
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
    console = make_console()
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
    file: TaskFile = None,
    limit: Limit = None,
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

    tasks = names(task)
    if file and len(tasks) != 1:
        raise KavaError("sweep: --file holds the rows of one task; name it with --task")
    if limit and not tasks:
        raise KavaError("sweep: --limit is of a task; name it with --task")
    console = make_console()
    runs = command.plan(recipe, seeds or [], settings or [], output, console)
    scoring = command.Scoring(tasks, file, limit)
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
    console, folder = make_console(), output or Path("runs") / resolved.name
    result = make(resolved, folder, console, resume)
    console.print(
        f"{result['weights']:,} weights after {result['steps']} steps in "
        f"{result['train_seconds']:.0f} s, validation accuracy "
        f"{result['validation_accuracy']} % of {result['validation_n']}; in {folder}",
        highlight=False,
    )


@recipe_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List recipes, try them out, compare them with the paper."""
    if context.invoked_subcommand is None:
        from kava.recipe_book import show

        show(make_console())


@recipe_app.command("check")
def check_recipes(
    paths: Annotated[
        list[str] | None, typer.Argument(help="recipe files or folders; all if not given")
    ] = None,
) -> None:
    """Run two steps of each recipe on a tiny random backbone."""
    from kava.recipe_book import check

    raise typer.Exit(0 if check(paths or [], make_console()) else 1)


@recipe_app.command("paper")
def compare_recipes(
    folder: Annotated[
        Path | None, typer.Argument(help="with SETTING/kava.yaml in it; the shipped ones if none")
    ] = None,
) -> None:
    """Print each value of the paper's Table 6 beside the recipe's."""
    from kava.table6 import show

    raise typer.Exit(0 if show(folder, make_console()) else 1)


def _recipe_name(recipe: str) -> str:
    path = Path(recipe)
    return f"{path.parent.name}-{path.stem}" if path.parent.name else path.stem
