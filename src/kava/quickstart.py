"""The command `kava quickstart`: train small models with KaVa and baselines, and compare them."""

import json
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.data.tasks import Task, load_task
from kava.errors import KavaError, unknown_name
from kava.evaluation.command import line
from kava.evaluation.score import score_run
from kava.inspect.ask import Settings, answer_one
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Recipe
from kava.report.plots import accuracy_against_passes, loss_parts
from kava.report.rows import make_row
from kava.report.terminal import quickstart_table
from kava.runs.folder import back_up, read_metrics, read_result
from kava.runs.layout import METRICS, RESULT
from kava.sweeps import sweep as sweeps
from kava.system import assets
from kava.system.environment import provenance
from kava.system.files import write_json, write_whole
from kava.training.run import train_run

METHODS = ("kava", "pccot", "no_cot")
SEEDS = (42, 123, 456)
BACKBONE = "checkpoints/quickstart/backbone"
CHECKPOINT = "checkpoints/quickstart/kava"
SUMMARY = "results/quickstart/summary.json"
QUESTIONS = {"short": 300, "full": 1000, "smoke": 20}
TIMED_ALONE = {"short": 30, "smoke": 3}
REDUCED_TRAINING = ["train.steps=400", "train.learning_rate=2e-3", "eval.every=100"]
SMOKE = [
    "train.steps=4", "train.batch_size=8", "train.log_every=1", "data.train_rows=64",
    "data.validation_rows=16", "eval.every=2",
]  # fmt: skip


@dataclass(frozen=True)
class QuickstartPlan:
    """What one call does; `length` is `short`, `full` or `smoke`."""

    length: str
    folder: Path
    seeds: tuple[int, ...]
    methods: tuple[str, ...]

    def recipe(self, method: str, seed: int) -> Recipe:
        """Return the recipe of one training."""
        extra = {"full": [], "short": REDUCED_TRAINING, "smoke": SMOKE}[self.length]
        return load_resolved(f"recipes/quickstart/{method}.yaml", [f"seed={seed}", *extra])

    def run(self, method: str, seed: int) -> Path:
        """Return the folder of one training."""
        many = self.length == "full" or len(self.seeds) > 1
        return self.folder / (f"{method}-seed{seed}" if many else method)


def run(plan: QuickstartPlan, console: Console) -> None:
    """Train and evaluate all models, write the results, and show them.

    Raises:
        KavaError: at full length, if a run failed; the other runs are finished first.
    """
    introduce(plan, console)
    if plan.length == "full":
        run_matrix(plan, console)
        return
    task = load_held_out(plan)
    for seed in plan.seeds:
        for method in plan.methods:
            train_and_score(plan, method, seed, task, console)
    score_backbone(plan, task, console)
    rows = collect(plan, task.name)
    write_results(plan, rows)
    conclude(plan, rows, task, console)


def run_matrix(plan: QuickstartPlan, console: Console) -> None:
    """Run the full length: a sweep of the quickstart's recipes (as `kava sweep`), and two plots."""
    files = [f"recipes/quickstart/{method}.yaml" for method in plan.methods]
    runs = sweeps.plan(files, plan.seeds, [], plan.folder, console)
    scoring = sweeps.Scoring(["synthetic"], limit=QUESTIONS["full"])
    outcomes = sweeps.sweep(runs, scoring, plan.folder, console)
    failed = [outcome.run.folder.name for outcome in outcomes if not outcome.is_usable]
    if failed:
        raise KavaError(
            f"quickstart: no result for {', '.join(failed)}; see the errors above",
            code="quickstart.runs-failed",
            key=failed[0],
        )
    plot(plan, sweeps.collect(outcomes, scoring.names))


def all_methods() -> tuple[str, ...]:
    """Return the names of all recipes of the quickstart, without that of the backbone."""
    files = sorted(assets.find("recipes/quickstart").glob("*.yaml"))
    return tuple(file.stem for file in files if not sweeps.is_backbone(file))


def make_plan(
    output: Path | None,
    full: bool,
    smoke: bool,
    seeds: list[int] | None,
    methods: list[str] | None,
    console: Console,
) -> QuickstartPlan:
    """Choose lengths and folders; an earlier short result is moved aside, never overwritten.

    Raises:
        KavaError: a method that the quickstart does not have.
    """
    length = "full" if full else "smoke" if smoke else "short"
    folder = output or Path("runs") / ("quickstart-full" if full else "quickstart")
    known = all_methods() if full else METHODS
    for name in methods or ():
        if name not in known:
            raise unknown_name(
                "method of the quickstart", name, known, code="quickstart.unknown-method"
            )
    if not full:
        back_up(folder, console)
    chosen = tuple(seeds or (SEEDS if full else SEEDS[:1]))
    return QuickstartPlan(length, folder, chosen, tuple(methods or known))


def introduce(plan: QuickstartPlan, console: Console) -> None:
    """Print what is about to happen."""
    first = plan.recipe(plan.methods[0], plan.seeds[0])
    made = json.loads((assets.find(BACKBONE) / RESULT).read_text(encoding="utf-8"))
    console.print(
        "KaVa quickstart: teach a small language model to think in latent tokens.\n"
        f"backbone   {BACKBONE}: {made['weights']:,} weights, solves word problems with "
        "a chain of thought\n"
        f"training   {', '.join(plan.methods)}: {first.train.steps} steps each, on the same rows, "
        f"seed {', '.join(map(str, plan.seeds))}\n"
        f"held out   {QUESTIONS[plan.length]} problems that share nothing with the training rows",
        highlight=False,
    )
    if plan.length == "smoke":
        console.print("smoke: only checks that everything runs; its numbers are not results")


def load_held_out(plan: QuickstartPlan) -> Task:
    """Return the test problems; those of the short run are the first ones of the full run's."""
    options = plan.recipe(plan.methods[0], plan.seeds[0]).data.options
    return load_task("synthetic", limit=QUESTIONS[plan.length], options=options)


def train_and_score(
    plan: QuickstartPlan, method: str, seed: int, task: Task, console: Console
) -> None:
    """Train and score one method with one seed."""
    folder = plan.run(method, seed)
    train_run(plan.recipe(method, seed), folder, console)
    score(plan, open_reasoner(str(folder)), task, folder, console)


def score_backbone(plan: QuickstartPlan, task: Task, console: Console) -> None:
    """Score the backbone itself, which writes a chain of thought (CoT)."""
    score(plan, open_reasoner(BACKBONE), task, plan.folder / "cot", console)


def score(
    plan: QuickstartPlan, reasoner: Reasoner, task: Task, folder: Path, console: Console
) -> None:
    """Score one model and print its result."""
    result = score_run(reasoner, task, folder, timed_alone=TIMED_ALONE[plan.length])
    console.print(f"{folder.name}: {line(task.name, result.summary)}", highlight=False, style="dim")


def collect(plan: QuickstartPlan, task: str) -> list[dict[str, Any]]:
    """Return one row per method, over its seeds."""
    rows = [make_row("cot", {None: read_result(plan.folder / "cot")}, task)]
    for method in plan.methods:
        results = {seed: read_result(plan.run(method, seed)) for seed in plan.seeds}
        rows.append(make_row(method, results, task, plan.recipe(method, plan.seeds[0])))
    return rows


def write_results(plan: QuickstartPlan, rows: list[dict[str, Any]]) -> None:
    """Write `result.json`, all metrics in one file, and two plots."""
    report = {"length": plan.length, "seeds": list(plan.seeds), "rows": rows, **provenance()}
    write_json(plan.folder / RESULT, report)
    lines = (
        json.dumps({"method": method, **record}) + "\n"
        for method in plan.methods
        for record in read_metrics(plan.run(method, plan.seeds[0]))
    )
    write_whole(plan.folder / METRICS, "".join(lines))
    plot(plan, rows)


def plot(plan: QuickstartPlan, rows: list[dict[str, Any]]) -> None:
    """Draw accuracy against forward passes, and the loss terms of the quickstart's methods."""
    shown = [method for method in plan.methods if method in METHODS]
    series = {method: read_metrics(plan.run(method, plan.seeds[0])) for method in shown}
    accuracy_against_passes(rows, plan.folder / "accuracy_against_passes.png")
    if series:
        loss_parts(series, plan.folder / "loss_parts.png")


def conclude(
    plan: QuickstartPlan, rows: list[dict[str, Any]], task: Task, console: Console
) -> None:
    """Print the table of results, three questions, and where all files are."""
    made = f"\n[bold]Made just now[/bold] ({plan.length} length)"
    console.print(made, highlight=False, markup=True)
    console.print(quickstart_table(rows))
    show_committed(console)
    ask_three(plan, task, console)
    kava = own_command()
    console.print(
        f"\nAll results are in {plan.folder}: recipes, metrics, predictions, plots, "
        "checkpoints.\n"
        "Next:\n"
        f'  {kava} ask {CHECKPOINT} "{task.examples[1].question}" --show-thoughts\n'
        f"  {kava} train recipes/quickstart/kava.yaml num_latents=14 -o runs/mine\n"
        f"  {kava} quickstart --full    every method at full length, three seeds: hours\n"
        f"  {kava} train recipes/llama1b_aug/kava.yaml seed=42    the paper's first row (GPU, Hub)",
        highlight=False,
        markup=False,
    )


def show_committed(console: Console) -> None:
    """Print the results of the full length that are committed to the repository."""
    summary = json.loads(assets.find(SUMMARY).read_text(encoding="utf-8"))
    seeds = ", ".join(map(str, summary["seeds"]))
    console.print(
        f"\n[bold]Committed results[/bold] of an earlier `kava quickstart --full` (seeds {seeds}; "
        f"{SUMMARY})",
        highlight=False,
        markup=True,
    )
    console.print(quickstart_table(summary["rows"]))


def ask_three(plan: QuickstartPlan, task: Task, console: Console) -> None:
    """Print three held-out questions with the answers of up to three models."""
    models = {
        "chain of thought (the backbone)": open_reasoner(BACKBONE),
        "KaVa (committed checkpoint)": open_reasoner(CHECKPOINT),
    }
    if "no_cot" in plan.methods:
        models["no steps (No-CoT, made just now)"] = open_reasoner(
            str(plan.run("no_cot", plan.seeds[0]))
        )
    for example in task.examples[2:5]:
        console.print(f"\n{example.question}  [right: {example.answer}]", markup=False)
        for name, reasoner in models.items():
            console.print(f"  {name}:", style="bold", highlight=False)
            answer_one(reasoner, example.question, Settings(), console)


def own_command() -> str:
    """Return how the user can call `kava`, since `make quickstart` does not put it on the path."""
    if shutil.which("kava"):
        return "kava"
    called = Path(sys.argv[0])
    return str(called) if called.name == "kava" else f"{sys.executable} -m kava"
