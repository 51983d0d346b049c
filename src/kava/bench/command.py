"""The commands `kava bench train` and `kava bench generate`: run them, print and write results."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from kava.backbones import loading
from kava.backbones.device import describe
from kava.bench import generate, train
from kava.bench.generate import Generation
from kava.bench.shapes import Lengths, random_reasoner
from kava.bench.timing import matrix_rate, time_interleaved
from kava.bench.train import Training
from kava.errors import KavaError
from kava.reasoning.open import print_device
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Recipe
from kava.sweeps import sweep
from kava.system import assets
from kava.system.environment import default_device, provenance
from kava.system.files import write_json
from kava.system.tables import terminal_table
from kava.system.text import print_text


@dataclasses.dataclass(frozen=True)
class BenchSettings:
    """Settings shared by both commands.

    shape: shape of the backbone; None is each recipe's own.
    """

    shape: str | None
    lengths: Lengths
    repeats: int
    warm_up: int
    output: Path | None


def bench_train(
    paths: Sequence[str], settings: Sequence[str], plan: BenchSettings, console: Console
) -> dict[str, Any]:
    """Time a training step of each recipe, interleaved; print and write the results.

    Raises:
        KavaError: an invalid recipe or shape.
    """
    device, named = torch.device(default_device()), recipe_paths(paths, console)
    recipes = {name: load_resolved(path, list(settings)) for name, path in named.items()}
    trainings = {
        name: Training.build(recipe, plan.shape or recipe.backbone, plan.lengths, device)
        for name, recipe in recipes.items()
    }
    for name, training in trainings.items():
        micro = training.micro_batches[0]["question"].shape[0]
        line = describe(training.reasoner.lm, training.autocast, micro)
        print_text(console, f"{name}: {line}")
    rates = {name: _matrix_rate(recipe, device) for name, recipe in recipes.items()}

    seconds = _time_pieces(
        train.pieces(trainings), plan, device, console, _draw_each_round(trainings, plan)
    )
    rows = {
        name: train.measure(training, seconds[name], rates[name])
        for name, training in trainings.items()
    }
    console.print(*_train_tables(rows))
    report = {
        "what": "one optimiser step: forward, backward, clipping, AdamW; random weights and tokens",
        "shapes": {name: plan.shape or recipe.backbone for name, recipe in recipes.items()},
        "lengths": dataclasses.asdict(plan.lengths),
        "recipes": {name: settings_of(recipe) for name, recipe in recipes.items()},
        "matrix_flops_per_second": {name: round(rate) for name, rate in rates.items()},
        "rows": rows,
    }
    return write_result(report, plan.output, console)


def bench_generate(
    paths: Sequence[str],
    settings: Sequence[str],
    plan: BenchSettings,
    batch_sizes: Sequence[int],
    console: Console,
    revision: str | None = None,
    merge: bool = False,
) -> dict[str, Any]:
    """Time the answers of each run or recipe, interleaved, for each batch size; print and write.

    Args:
        merge: whether to merge LoRA adapters into their backbones first.
        revision: branch, tag or commit of the runs that are on the Hub.

    Raises:
        KavaError: an invalid recipe, run, shape or batch size.
    """
    if any(size < 1 for size in batch_sizes):
        raise KavaError("--batch must be greater than 0", code="bench.not-above-0", key="--batch")
    device, named = torch.device(default_device()), recipe_paths(paths, console)
    reasoners = {
        name: _reasoner(path, settings, plan, device, revision) for name, path in named.items()
    }
    for name, reasoner in reasoners.items():
        if merge:
            reasoner.merge()
        print_device(reasoner, max(batch_sizes), console, name)
    rates = {name: _matrix_rate(r.recipe, device, r.lm.dtype) for name, r in reasoners.items()}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in reasoners}
    for size in batch_sizes:
        generations = {
            name: Generation.build(reasoner, plan.lengths, size)
            for name, reasoner in reasoners.items()
        }
        renew = _draw_each_round(generations, plan)
        seconds = _time_pieces(generate.pieces(generations), plan, device, console, renew)
        for name, one in generations.items():
            record = one.record(seconds[f"{name} prefill"], seconds[name], rates[name])
            rows[name].append(record)
    console.print(*_generate_tables(rows))
    report = {
        "what": "questions of one batch answered greedily; answers of a fixed length",
        "merged": {name: r.merged for name, r in reasoners.items()},
        "shapes": {name: r.identity["name"] for name, r in reasoners.items()},
        "lengths": dataclasses.asdict(plan.lengths),
        "recipes": {name: settings_of(r.recipe) for name, r in reasoners.items()},
        "matrix_flops_per_second": {name: round(rate) for name, rate in rates.items()},
        "rows": rows,
    }
    return write_result(report, plan.output, console)


def recipe_paths(names: Sequence[str], console: Console) -> dict[str, str]:
    """Return the paths of recipes and runs by name: the file's, with its folders if names clash.

    A pattern that the shell could not expand is also searched in the shipped recipes.

    Raises:
        KavaError: a pattern without a match, or files whose names differ only in their suffix.
    """
    paths: dict[Path, str] = {}
    for name in names:
        for path in assets.find_all(name) if any(sign in name for sign in "*?[") else [name]:
            if Path(path).resolve() in paths:
                console.print(f"{path}: given twice; it is measured once", highlight=False)
            paths.setdefault(Path(path).resolve(), str(path))
    return dict(zip(sweep.names(list(paths), "/"), paths.values(), strict=True))


def _reasoner(
    name: str,
    settings: Sequence[str],
    plan: BenchSettings,
    device: torch.device,
    revision: str | None,
) -> Reasoner:
    if name.endswith((".yaml", ".yml")):
        recipe = load_resolved(name, list(settings))
        return random_reasoner(recipe, plan.shape or recipe.backbone, device)
    if settings or plan.shape:
        raise KavaError(
            f"{name} is a run; --set and --shape can only be used with recipes",
            code="bench.settings-of-a-run",
            key=name,
        )
    return Reasoner.from_pretrained(name, device=device, revision=revision)


def _draw_each_round(
    measured: Mapping[str, Training | Generation], plan: BenchSettings
) -> Callable[[int], None]:
    """Return what draws new examples before each round, if they have real lengths."""

    def renew(done: int) -> None:
        if plan.lengths.source:
            for one in measured.values():
                one.renew(plan.lengths, seed=done)

    return renew


def _time_pieces(
    pieces: dict[str, Any],
    plan: BenchSettings,
    device: torch.device,
    console: Console,
    before: Callable[[int], None],
) -> Any:
    rounds = plan.warm_up + plan.repeats
    with console.status(f"round 0 of {rounds}") as status:
        return time_interleaved(
            pieces,
            plan.repeats,
            plan.warm_up,
            device,
            lambda done: status.update(f"round {done} of {rounds}"),
            before,
        )


def _matrix_rate(recipe: Recipe, device: torch.device, dtype: torch.dtype | None = None) -> float:
    if dtype is None:
        bf16 = recipe.train.autocasts(device.type)
        dtype = torch.bfloat16 if bf16 else loading.choose_dtype(recipe, device)
    return matrix_rate(device, dtype)


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return the settings of a recipe that a training step depends on."""
    tree = recipe.model_dump(by_alias=True)
    return {k: v for k, v in tree.items() if k not in ("data", "eval", "description", "family")}


def write_result(result: dict[str, Any], output: Path | None, console: Console) -> dict[str, Any]:
    """Add versions and machine to a result, and write it if there is a file for it."""
    result |= provenance()
    if output:
        write_json(output, result)
        console.print(f"written {output}", highlight=False)
    return result


def _train_tables(rows: dict[str, dict[str, Any]]) -> list[Table]:
    first = next(iter(rows.values()))["ms_per_step"]["median"]
    time, work = [], []
    for name, row in rows.items():
        ms = row["ms_per_step"]
        time.append(
            [
                name,
                f"{ms['median']:.1f}",
                f"{ms['quartile_1']:.1f} - {ms['quartile_3']:.1f}",
                f"{ms['median'] / first:.2f}",
                f"{row['ms_per_question']:.2f}",
                f"{row['tokens_per_second']:,.0f}",
            ]
        )
        work.append(
            [
                name,
                f"{row['token_forwards']:,}",
                _format_or_dash(row["token_forwards_least"], "{:,}"),
                f"{row['flops'] / 1e9:.2f}",
                _format_or_dash(row["flops_least"], "{:.2f}", 1e-9),
                _format_or_dash(row["flops_over_least"], "{:.3f}"),
                _format_or_dash(row["mfu"], "{:.1f} %", 100),
                _peak(row),
            ]
        )
    return [terminal_table(_TRAIN_TIME, time), terminal_table(_TRAIN_WORK, work)]


_TRAIN_TIME = (
    "recipe", "ms a step", "quartiles", "of the first", "ms a row", "tokens/s",
)  # fmt: skip
_TRAIN_WORK = ("recipe", "token-forwards", "least", "GFLOP", "least", "ratio", "MFU", "peak MB")


def _peak(row: dict[str, Any]) -> str:
    """Format the peak memory in MB; on a GPU also what its allocator reserved."""
    peak = row["peak_memory"]
    reserved = f", {peak['reserved'] / 1e6:,.0f} reserved" if peak["reserved"] else ""
    return f"{peak['bytes'] / 1e6:,.0f}{reserved}"


def _format_or_dash(value: float | None, form: str, unit: float = 1) -> str:
    """Format a number; `-` if the method does not state its minimum work."""
    return "-" if value is None else form.format(value * unit)


def _generate_tables(rows: dict[str, list[dict[str, Any]]]) -> list[Table]:
    time, work = [], []
    for name, records in rows.items():
        for row in records:
            ms, size = row["ms_per_batch"], str(row["batch_size"])
            time.append(
                [
                    name,
                    size,
                    f"{row['ms_per_question']:.2f}",
                    f"{ms['quartile_1']:.1f} - {ms['quartile_3']:.1f}",
                    f"{row['ms_prefill']['median']:.1f}",
                    f"{row['questions_per_second']:,.1f}",
                ]
            )
            work.append(
                [
                    name,
                    size,
                    str(row["forward_passes"]),
                    f"{row['flops'] / 1e9:.3f}",
                    _format_or_dash(row["flops_least"], "{:.3f}", 1e-9),
                    f"{row['cache_bytes'] / 1e6:,.2f}",
                    _peak(row),
                    _format_or_dash(row["mfu"], "{:.1f} %", 100),
                ]
            )
    return [terminal_table(_GENERATE_TIME, time), terminal_table(_GENERATE_WORK, work)]


_GENERATE_TIME = (
    "model", "batch", "ms a question", "ms a batch, quartiles", "prefill", "questions/s",
)  # fmt: skip
_GENERATE_WORK = ("model", "batch", "passes", "GFLOP", "least", "cache MB", "peak MB", "MFU")
