"""Commands that train models, and commands about recipes."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from kava.cli._app import (
    Limit,
    ManyWords,
    Output,
    Overrides,
    Resume,
    Settings,
    TaskFiles,
    app,
    examples,
    make_console,
    names,
)
from kava.errors import KavaError
from kava.reasoning.resolve import resolve

recipe_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    epilog=examples("kava recipes", "kava recipes check recipes/quickstart/kava.yaml"),
)
app.add_typer(recipe_app, name="recipes")


@app.command(epilog=examples("kava quickstart", "kava quickstart --full -o runs/full"))
def quickstart(
    output: Output = None,
    full: Annotated[
        bool, typer.Option("--full", help="every method with three seeds, which takes hours")
    ] = False,
    smoke: Annotated[
        bool, typer.Option("--smoke", help="only a few steps, to check that it runs")
    ] = False,
    seed: Annotated[list[int] | None, typer.Option(help="seed; may be repeated")] = None,
    method: Annotated[list[str] | None, typer.Option(help="only these methods")] = None,
) -> None:
    """Train KaVa and two baselines here, and compare them."""
    from kava import quickstart as command

    console = make_console()
    command.run(command.make_plan(output, full, smoke, seed, method, console), console)


@app.command(
    epilog=examples(
        "kava train recipes/quickstart/kava.yaml num_latents=14 -o runs/mine",
        "kava train recipes/llama1b_aug/kava.yaml seed=123 --smoke",
    )
)
def train(
    recipe: str,
    overrides: Overrides = None,
    output: Output = None,
    resume: Resume = False,
    smoke: Annotated[
        bool,
        typer.Option("--smoke", help="a few steps on a tiny random backbone of the same family"),
    ] = False,
) -> None:
    """Train a recipe (YAML) into a run folder."""
    from kava.recipe.load import load_recipe

    if smoke and resume:
        raise KavaError(
            "train: --smoke always starts a new run; remove --resume",
            code="cli.resume-with-smoke",
            key="--resume",
        )
    given = load_recipe(recipe, overrides or [])  # reports a mistyped key before torch is imported
    from kava.recipe import schema
    from kava.system import signals
    from kava.training import run as runs

    resolved = resolve(given, recipe)
    console = make_console()
    if smoke:
        from kava.training.smoke import smoke_run

        smoke_run(resolved, output, console)
        return
    folder = output or Path("runs") / f"{_recipe_name(recipe)}-seed{resolved.seed}"
    announce = f"# {recipe}, resolved\n{schema.dump(resolved)}"
    with signals.save_on_signal():
        result = runs.train_run(resolved, folder, console, resume, announce=announce)
    console.print(
        f"trained {result['steps']} steps in {result['train_seconds']:.0f} s; "
        f"checkpoint in {folder / 'checkpoint'}\nnext: kava eval {folder} --task ..., "
        f'or kava ask {folder} "question"',
        highlight=False,
    )


@app.command(
    cls=ManyWords,
    epilog=examples(
        "kava sweep recipes/quickstart/*.yaml --seeds 42 123 --task synthetic -o runs/matrix",
        "kava sweep recipes/llama1b_aug/*.yaml --seeds 42 123 456 --dry-run",
    ),
)
def sweep(
    recipe: Annotated[
        list[str] | None,
        typer.Argument(metavar="RECIPE", help="YAML file; with --status, a sweep's folder"),
    ] = None,
    seeds: Annotated[
        list[int] | None,
        typer.Option(metavar="SEED...", help="seeds; each recipe's own if not given"),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="folder of all runs and the summary")
    ] = Path("runs/sweep"),
    task: Annotated[
        str | None, typer.Option(help="score on one task or several, separated by commas")
    ] = None,
    file: TaskFiles = None,
    limit: Limit = None,
    settings: Settings = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="list what would run and what each would cost")
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="list the state of each run, without starting any")
    ] = False,
    launcher: Annotated[
        str,
        typer.Option(help="local: on this machine, one after the other; slurm: one job per run"),
    ] = "local",
    partition: Annotated[str | None, typer.Option(help="SLURM partition")] = None,
    account: Annotated[str | None, typer.Option(help="SLURM account")] = None,
    array_limit: Annotated[
        int | None, typer.Option(min=1, help="maximum number of jobs at a time")
    ] = None,
    time: Annotated[
        str | None, typer.Option(help="wall-clock limit per job: minutes, H:MM:SS or D-HH:MM:SS")
    ] = None,
    nodes: Annotated[int | None, typer.Option(help="nodes per job")] = None,
    gpus: Annotated[
        int | None, typer.Option(help="GPUs per node, with one process per GPU")
    ] = None,
    processes: Annotated[
        int | None, typer.Option(help="processes per node, on nodes without GPUs")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="CPUs per process")] = None,
    memory: Annotated[float | None, typer.Option(help="memory per process, in GB")] = None,
) -> None:
    """Train recipes with several seeds, and compare them.

    Runs are trained one after the other, or each as a SLURM job with the resources of its recipe,
    where several processes, on one node or more, train it together. Finished runs are skipped and
    interrupted runs are continued, so the same command can be run again. The exit status is 1 if
    a run failed (or would fail, with --dry-run). With --status, it is 0 if all runs are finished, 1
    if some failed, and 3 if none failed and some are not finished yet.
    """
    from kava.errors import unknown_name
    from kava.sweeps import slurm
    from kava.sweeps import sweep as command

    if launcher not in ("local", "slurm"):
        raise unknown_name("--launcher", launcher, ("local", "slurm"), code="cli.unknown-launcher")
    wishes = {
        "minutes": slurm.minutes(time), "nodes": nodes, "gpus": gpus, "processes": processes,
        "cpus": cpus, "memory_gb": memory,
    }  # fmt: skip
    wishes = {key: value for key, value in wishes.items() if value is not None}
    if launcher != "slurm" and not status and (wishes or partition or account or array_limit):
        raise KavaError(
            "sweep: --partition, --account, --array-limit, --time, --nodes, --gpus, --processes, "
            "--cpus and --memory are for SLURM jobs; add --launcher slurm",
            code="cli.job-option-without-slurm",
            key="--launcher",
        )
    tasks = names(task)
    if limit and not tasks:
        raise KavaError(
            "sweep: --limit requires a task; name it with --task",
            code="cli.limit-without-task",
            key="--limit",
        )
    console = make_console()
    scoring = command.Scoring(tasks, file or [], limit)
    if status:
        raise typer.Exit(_status(recipe or [], seeds, settings, output, scoring, console))
    if not recipe:
        raise KavaError(
            "sweep: pass recipes, such as recipes/quickstart/kava.yaml", code="cli.no-recipe"
        )
    settings = [*(settings or []), *(f"resources.{key}={value}" for key, value in wishes.items())]
    runs = command.plan(recipe, seeds or [], settings, output, console)
    jobs = slurm.SubmitOptions(partition, account, array_limit) if launcher == "slurm" else None
    if dry_run:
        from kava.sweeps.dry_run import list_runs

        raise typer.Exit(0 if list_runs(runs, scoring, console, jobs, output) else 1)
    outcomes = command.sweep(runs, scoring, output, console, jobs)
    if any(outcome.status == command.FAILED for outcome in outcomes):
        raise typer.Exit(1)


def _status(
    words: list[str],
    seeds: list[int] | None,
    settings: list[str] | None,
    output: Path,
    scoring: Any,
    console: Any,
) -> int:
    """Show the status of a sweep's folder, or of the runs of recipes in `output`.

    Returns the exit status.
    """
    from kava.sweeps import record, status
    from kava.sweeps import sweep as command

    folders = [word for word in words if Path(word).is_dir()]
    if folders or not words:
        if len(words) > 1:
            raise KavaError(
                f"sweep: --status {folders[0]}: pass either one folder or recipes",
                code="cli.status-of-several",
                key="--status",
            )
        output = Path(folders[0]) if folders else output
        return status.show(record.load_plan(output), output, console)
    runs = command.plan(words, seeds or [], settings or [], output, console)
    return status.show([record.PlannedRun(run, scoring) for run in runs], output, console)


@app.command(
    cls=ManyWords,
    epilog=examples(
        "kava prefetch recipes/llama1b_aug/kava.yaml --task gsm8k",
        "kava prefetch 'recipes/*_aug*/kava.yaml'",
    ),
)
def prefetch(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE", help="YAML file")],
    task: Annotated[
        str | None, typer.Option(help="also the rows of these tasks, separated by commas")
    ] = None,
    settings: Settings = None,
) -> None:
    """Download what recipes need: backbones and rows. Their runs then start without a network.

    Where the Hub cannot be reached, as on most clusters' compute nodes, set HF_HUB_OFFLINE=1 for
    the runs; HF_HOME is the folder of the downloaded files.
    """
    from kava.sweeps.prefetch import prefetch as fetch

    fetch(recipe, names(task), settings or [], make_console())


@app.command(
    epilog=examples(
        "kava pretrain recipes/quickstart/backbone.yaml -o runs/backbone",
        "kava pretrain recipes/quickstart/backbone.yaml train.steps=500",
    )
)
def pretrain(
    recipe: str, overrides: Overrides = None, output: Output = None, resume: Resume = False
) -> None:
    """Train a small backbone that writes a chain of thought."""
    from kava.recipe import schema
    from kava.recipe.load import load_recipe

    resolved = load_recipe(recipe, overrides or [], schema.BackboneRecipe)
    from kava.system import signals
    from kava.training.pretrain import pretrain as make

    console, folder = make_console(), output or Path("runs") / resolved.name
    with signals.save_on_signal():
        result = make(resolved, folder, console, resume)
    console.print(
        f"{result['weights']:,} weights after {result['steps']} steps in "
        f"{result['train_seconds']:.0f} s, validation accuracy "
        f"{result['validation_accuracy']} % (n = {result['validation_n']}); in {folder}",
        highlight=False,
    )


@recipe_app.callback(invoke_without_command=True)
def recipes(context: typer.Context) -> None:
    """List recipes, and try them out."""
    if context.invoked_subcommand is None:
        from kava.sweeps.recipes import show

        show(make_console())


@recipe_app.command(
    "check",
    epilog=examples(
        "kava recipes check recipes/quickstart/kava.yaml", "kava recipes check recipes/llama1b_aug"
    ),
)
def check_recipes(
    paths: Annotated[
        list[str] | None, typer.Argument(help="recipe files or folders; all if not given")
    ] = None,
) -> None:
    """Run two steps of each recipe on a tiny random backbone."""
    from kava.sweeps.recipes import check

    raise typer.Exit(0 if check(paths or [], make_console()) else 1)


@recipe_app.command(
    "schema", epilog=examples("kava recipes schema", "kava recipes schema > recipe.schema.json")
)
def schema_of_recipes() -> None:
    """Print the JSON schema of recipes, for editors.

    With a first line `# yaml-language-server: $schema=recipe.schema.json`, an editor completes the
    keys of a recipe and marks mistakes.
    """
    from kava.reasoning.resolve import recipe_schema

    print(json.dumps(recipe_schema(), indent=1, ensure_ascii=False))


def _recipe_name(recipe: str) -> str:
    path = Path(recipe)
    return f"{path.parent.name}-{path.stem}" if path.parent.name else path.stem
