"""The tables of `docs/scale.md`, from `results/bench`; see `tools.readme`."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kava.sweeps.dry_run import format_large_number
from kava.system.tables import Lines, markdown_table
from kava.system.text import format_bytes

#: A share of a GPU's rate, and that rate in FLOP/s, to show the arithmetic with; nothing has been
#: measured that gave them.
EXAMPLE = (0.4, 400e12)

PREDECESSORS, STEP, ANSWERS, STEADY = "predecessors", "train", "generate", "steady_memory"
SLOW = "predecessors_slow"  # the same again, while the machine was slower
#: The 18 runs of the paper, and all 48 recipes of its settings once.
PAPER, METHODS = "matrix_paper", "matrix_methods"
MEMORY, MEMORY_CHECKPOINTED = "memory", "memory_checkpointed"


def read(root: Path, name: str) -> dict[str, Any]:
    """A result below `results/bench`."""
    return json.loads((root / f"results/bench/{name}.json").read_text(encoding="utf-8"))


def on_gpus(root: Path) -> list[Path]:
    """Training steps that were measured on a GPU."""
    files = sorted((root / "results/bench/gpu").glob("*.json"))
    return [file for file in files if is_training(json.loads(file.read_text(encoding="utf-8")))]


# -- what is measured ----------------------------------------------------------------------------


def against_predecessors(root: Path) -> str:
    """Steps of the predecessors' order of calls and of ours; from question to first token."""
    whole, slow = read(root, PREDECESSORS), read(root, SLOW)
    results, parts = whole["results"], _adapters(whole)
    rows = [
        (told, *(f"{part[name]['ms']['median']:,.0f}" for part in parts), *_shares(parts, name))
        for name, told in _STEPS.items()
    ]
    prefill = results["prefill"]
    ours, theirs = prefill["latent prefill"], prefill["official prefill"]
    end = (
        "The time to the first token, with all iterations, is "
        f"{ours['ms']['median']:.0f} ms for 32 questions with `pccot`. PCCoT's official order also "
        f"runs the teacher and takes {theirs['ms']['median']:.0f} ms "
        f"(ratio {ours['time_ratio']['median']:.2f})."
    )
    again = ", ".join(f"`{name}` {_shares(_adapters(slow), name)[0]}" for name in _OURS)
    late = slow["results"]["prefill"]["latent prefill"]["time_ratio"]["median"]
    rates = [found["matrix_flops_per_second"] / 1e9 for found in (slow, whole)]
    end += (
        f" A day later, the same machine reached {rates[0]:.0f} GFLOP/s in large matrix products "
        f"instead of {rates[1]:.0f}. The ratios were then {again}, and {late:.2f} for the time to "
        f"the first token ([result](../results/bench/{SLOW}.json))."
    )
    headings = ("", "ms, full weights", "ms, LoRA r 128", *_OF_OFFICIAL)
    return _table(headings, rows) + _said(end)


def _adapters(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [found["results"][f"step, {adapter}"] for adapter in ("full", "lora")]


_OF_OFFICIAL = ("time relative to the official step", "FLOPs relative to the official step")
_STEPS = {
    "plain cot": "plain CoT, one forward pass with labels",
    "official pccot": "PCCoT, official order",
    "official codi": "CODI, official order",
    "pccot": "`pccot`",
    "codi": "`codi`",
    "kava": "`kava`, relative to PCCoT",
}


def _shares(parts: Sequence[dict[str, Any]], name: str) -> tuple[str, str]:
    if name.startswith("official"):
        return "1", "1"
    if name not in _OURS:
        return "", ""
    times = [f"{part[name]['time_ratio']['median']:.2f}" for part in parts]
    work = [f"{part[name]['flops_ratio']:.2f}" for part in parts]
    return " / ".join(dict.fromkeys(times)), " / ".join(dict.fromkeys(work))


_OURS = ("pccot", "codi", "kava")


def against_the_least(root: Path) -> str:
    """A step's time and FLOPs; what pads and gradient checkpointing add."""
    plain, grouped = read(root, STEP)["rows"], read(root, "train_grouped")["rows"]
    rows = [
        (
            f"`{name}`",
            f"{row['ms_per_step']['median']:,.0f}",
            f"{row['flops_over_least']:.3f}",
            f"{grouped[name]['flops_over_least']:.3f}",
            f"{100 * row['mfu']:.0f} %",
        )
        for name, row in plain.items()
    ]
    again = read(root, "train_checkpointed")["rows"]["kava"]
    end = (
        "The excess over 1 comes from padding and from the upper triangle of attention. "
        "`train.group_by_length=true` removes most of the padding "
        "([result](../results/bench/train_grouped.json)). With "
        "`train.gradient_checkpointing=true`, a step of `kava` takes "
        f"{again['ms_per_step']['median']:,.0f} ms and {again['flops_over_least']:.2f} times the "
        "minimum FLOPs ([result](../results/bench/train_checkpointed.json)). With "
        f"`train.compile=true`, steps of {_compiled(root)} of the uncompiled time. Compiled and "
        "uncompiled steps were measured alternately "
        "([result](../results/bench/train_compiled.json))."
    )
    return _table(_LEAST, rows) + _said(end)


def _compiled(root: Path) -> str:
    """`name`, ... take so much of the time of their uncompiled steps."""
    rows = read(root, "train_compiled")["rows"]
    shares = {
        name.removeprefix("compiled/"): row["ms_per_step"]["median"]
        / rows[name.replace("compiled/", "bench/")]["ms_per_step"]["median"]
        for name, row in rows.items()
        if name.startswith("compiled/")
    }
    names = ", ".join(f"`{name}`" for name in shares)
    return f"{names} take {', '.join(f'{share:.2f}' for share in shares.values())}"


_LEAST = (
    "", "ms", "FLOPs / minimum", "FLOPs / minimum, grouped by length",
    "of the machine's rate",
)  # fmt: skip


def answers(root: Path) -> str:
    """Milliseconds and cache of answers, by kind of thinking."""
    found = read(root, ANSWERS)["rows"]
    rows = []
    for name, told in _THINKING.items():
        alone, together = ({row["batch_size"]: row for row in found[name]}[n] for n in (1, 32))
        cells = (
            f"{alone['ms_per_question']:.1f}",
            f"{together['ms_per_question']:.1f}",
            f"{together['cache_bytes'] / 1e6:.1f}",
        )
        rows.append((told, *cells))
    headings = (
        "", "ms per question, batch 1", "ms per question, batch 32", "KV cache of batch 32, MB",
    )  # fmt: skip
    return _table(headings, rows)


_THINKING = {
    "cot": "chain of thought",
    "no_cot": "no chain of thought",
    "codi": "`codi`, 6 latents",
    "kava": "`kava`, 24 latents, T 3",
}


def steady_memory(root: Path) -> str:
    """That a training's memory does not grow."""
    found = read(root, STEADY)
    return _said(
        "Memory does not grow. The resident memory of `kava train recipes/quickstart/kava.yaml` at "
        f"step {found['last']:,} is {found['last_over_first']:.2f} times that at step "
        f"{found['first']} (`python benchmarks/steady_memory.py`, "
        "[result](../results/bench/steady_memory.json))."
    ).lstrip()


def gpu_steps(root: Path) -> str:
    """Training steps on GPUs, if any were measured."""
    files = on_gpus(root)
    if not files:
        return "On GPUs nothing is measured yet, neither times nor memory.\n"
    rows = []
    for file in files:
        tree = json.loads(file.read_text(encoding="utf-8"))
        for name, row in tree["rows"].items():
            cells = (
                f"`{name}`, {tree['recipes'][name]['adapter']}",
                tree["shapes"][name].rpartition("/")[2],
                f"{row['rows'] // row['micro_batches']} of {row['rows']}",
                f"{row['ms_per_step']['median']:,.0f}",
                f"{row['flops_over_least']:.3f}",
                f"{100 * row['mfu']:.0f} %",
                _allocated_and_reserved(row["peak_memory"]),
                f"[{machine(tree)}](../results/bench/gpu/{file.name})",
            )
            rows.append(cells)
    return _table(_GPU, rows, left=(0, 1, 7))


def _allocated_and_reserved(peak: dict[str, Any]) -> str:
    """Bytes at the peak; older results have no reserved ones."""
    known = (peak[name] for name in ("bytes", "reserved") if peak.get(name) is not None)
    return ", ".join(map(format_bytes, known))


def counted_memory(root: Path) -> str:
    """Peaks of steps, counted on tensors without values."""
    plain, again = (read(root, name) for name in (MEMORY, MEMORY_CHECKPOINTED))
    sizes = list(next(iter(plain["rows"].values())))
    rows = []
    for name, by_size in plain["rows"].items():
        weights = format_bytes(by_size[sizes[0]]["weights"])
        peaks = [format_bytes(by_size[size]["peak"]) for size in sizes]
        less = [format_bytes(again["rows"][name][size]["peak"]) for size in sizes]
        rows.append((f"`{name.removesuffix('/kava')}`", weights, *peaks, *less))
    headings = (
        "`kava`, LoRA r 128, bf16", "weights", *(f"micro-batch {size}" for size in sizes),
        *(f"{size}, checkpointed" for size in sizes),
    )  # fmt: skip
    return _table(headings, rows) + _said(
        "The table shows the peak of the storage that exists at the same time, in any step after "
        "the first, with uncompiled layers. A padded micro-batch is as wide as its longest "
        f"examples: the table counts the widest of {plain['drawn_micro_batches']:,} micro-batches, "
        "with the lengths of 9,915 examples of GSM8k-Aug, in tokens of SmolLM2. It excludes the "
        "fragmentation of the allocator, the "
        "workspaces of the kernels and the half gigabyte that CUDA needs."
    )


_GPU = (
    "", "shape", "micro-batch", "ms per step", "FLOPs / minimum", "of the GPU's rate",
    "peak memory, allocated and reserved", "device",
)  # fmt: skip

# -- the paper's matrix --------------------------------------------------------------------------


def paper_runs(root: Path) -> str:
    """The 18 runs: what each of the six recipes needs."""
    found = read(root, PAPER)
    rows, totals = found["recipes"], found["totals"]
    sizes = list(next(iter(rows.values()))["memory_by_gpu_gb"])
    table = [
        (
            f"`{name.removesuffix('-kava')}`",
            f"{row['steps']:,}",
            format_large_number(row["token_forwards_least"]),
            flops(row["flops_least"]),
            rows_and_memory(row["memory"]),
            " / ".join(_rows_that_fit(row["memory_by_gpu_gb"][size]) for size in sizes),
            training_and_done(row["disk"]),
        )
        for name, row in rows.items()
    ]
    headings = (
        "`kava`, one run", "steps", "token-forwards", "FLOPs", "micro-batch: memory",
        f"micro-batch that fits {' / '.join(sizes)} GB", "disk during training, after",
    )  # fmt: skip
    end = (
        f"Together: {totals['runs']} runs, {flops(totals['flops_least'])}, "
        f"{format_bytes(totals['disk_training'])} of disk if all are trained at once and "
        f"{format_bytes(totals['disk_done'])} when they are done, "
        f"{format_bytes(totals['backbones'])} of backbones."
    )
    return _table(headings, table) + _said(end)


def paper_methods(root: Path) -> str:
    """FLOPs of every method in every setting."""
    found = read(root, METHODS)
    rows, totals = found["recipes"], found["totals"]
    settings = list(dict.fromkeys(name.rpartition("-")[0] for name in rows))
    methods = list(dict.fromkeys(name.rpartition("-")[2] for name in rows))
    table = [
        (f"`{method}`", *(_exa(rows[f"{setting}-{method}"]["flops_least"]) for setting in settings))
        for method in methods
    ]
    table.append(
        ("all", *(_exa(sum(rows[f"{s}-{m}"]["flops_least"] for m in methods)) for s in settings))
    )
    lotus = sum(row["flops_least"] for row in rows.values() if row["method"] == "lotus")
    end = (
        f"Together: {totals['runs']} runs, {flops(totals['flops_least'])}, of which `lotus` takes "
        f"{100 * lotus / totals['flops_least']:.0f} %; {format_bytes(totals['disk_training'])} of "
        f"disk if all are trained at once and {format_bytes(totals['disk_done'])} when they are "
        "done."
    )
    return _table(("EFLOP a run", *(f"`{s}`" for s in settings)), table) + _said(end)


def paper_hours(root: Path) -> str:
    """How hours follow from a share and a rate, which a GPU's result has."""
    totals = read(root, PAPER)["totals"]
    share, rate = EXAMPLE
    hours = totals["flops_least"] / (share * rate) / 3600
    return _said(
        "The GPU hours are unknown until a step is measured on a GPU. If a step reaches a fraction "
        f"s of the GPU's rate r, the {totals['runs']} runs take "
        f"{flops(totals['flops_least'])} / (s r). As an example, and not a measurement, "
        f"s = {share:g} and r = {rate / 1e12:g} TFLOP/s would give {hours:.0f} GPU hours."
    ).lstrip()


def is_training(tree: Any) -> bool:
    """Whether a result is one of `kava bench train`."""
    rows = tree.get("rows") if isinstance(tree, dict) else None
    return isinstance(rows, dict) and bool(rows) and all("mfu" in row for row in rows.values())


def machine(tree: dict[str, Any]) -> str:
    """What a result was measured on: the accelerator, or else the processor."""
    return tree["machine"].get("accelerator") or str(tree["machine"].get("processor"))


def rows_and_memory(fit: dict[str, int] | None) -> str:
    """`32: 18.5 GB`; `?` where it is not known."""
    return f"{fit['micro_batch_size']}: {format_bytes(fit['bytes'])}" if fit else "?"


def training_and_done(disk: dict[str, int] | None) -> str:
    """`1.3 GB, 144 MB`; `?` where it is not known."""
    return f"{format_bytes(disk['training'])}, {format_bytes(disk['done'])}" if disk else "?"


def flops(number: float) -> str:
    """`3.43 EFLOP` (10^18), `25.1 TFLOP` (10^12)."""
    for size, sign in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T")):
        if number >= size:
            return f"{number / size:.3g} {sign}FLOP"
    return f"{number / 1e9:.3g} GFLOP"


def _rows_that_fit(fit: dict[str, int] | None) -> str:
    return str(fit["micro_batch_size"]) if fit else "none"


def _exa(number: float) -> str:
    return f"{number / 1e18:.3g}"


def _said(text: str) -> str:
    """A paragraph below a table."""
    return f"\n{textwrap.fill(text, 100, break_long_words=False, break_on_hyphens=False)}\n"


def _table(headings: Sequence[str], rows: Lines, left: Sequence[int] = (0,)) -> str:
    return markdown_table(headings, rows, left) + "\n"


#: By the name of its place in the page.
TABLES: dict[str, Callable[[Path], str]] = {
    table.__name__: table
    for table in (
        against_predecessors, against_the_least, answers, steady_memory, gpu_steps,
        counted_memory, paper_runs, paper_methods, paper_hours,
    )
}  # fmt: skip
