"""How the cost of a step grows with what it is made of, and that of compression with N_C.

    python benchmarks/growth.py        # writes results/bench/growth.json and growth.png

One thing is varied at a time, the others stay: M 24, T 3, questions of 65 tokens, reasoning of 41,
batch 8, on the shape `small` of `kava bench`. Compression is R-KV alone, scores and choice, of a
cache of 8 rows, 8 heads and 64 values per head, with 8 answer tokens. Nothing else should run on
the machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console

from kava.backbones.attention import answer_attention
from kava.bench.shapes import Lengths
from kava.bench.timing import spread, time_interleaved
from kava.bench.train import Training
from kava.reasoning.evictions import EvictionInputs
from kava.reasoning.evictions.rkv import RKV
from kava.reasoning.resolve import load_resolved
from kava.system.environment import provenance
from kava.system.files import write_json
from kava.system.memory import peak_memory

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "growth.json"
CPU = torch.device("cpu")
BASE = {"M": 24, "T": 3, "question": 65, "reasoning": 41, "batch": 8}
VALUES = {
    "M": [6, 12, 24, 48, 96],
    "T": [0, 1, 2, 3, 4, 6, 8],
    "question": [32, 65, 130, 260],
    "reasoning": [20, 41, 82, 164, 328],
    "batch": [1, 2, 4, 8, 16, 32],
}
NAMES = {
    "M": "latents M", "T": "iterations T", "question": "tokens of the question",
    "reasoning": "tokens of the reasoning", "batch": "rows in the batch",
    "N_C": "reasoning tokens N_C, compressed to 24",
}  # fmt: skip
N_C = [64, 128, 256, 512, 1024, 2048, 4096]
ROWS, HEADS, GROUP, ANSWER, SIZE, BUDGET = 8, 8, 4, 8, 64, 24
METHODS = {"kava": "#0072B2", "pccot": "#D55E00", "cot": "#000000"}


def training(method: str, change: dict[str, int]) -> Training:
    """A step with one thing changed."""
    values = {**BASE, **change}
    settings = [f"num_latents={values['M']}", f"num_iterations={values['T']}"]
    settings.append(f"train.batch_size={values['batch']}")
    lengths = Lengths((values["question"],) * 2, (values["reasoning"],) * 2)
    recipe = load_resolved(f"recipes/bench/{method}.yaml", settings)
    return Training.build(recipe, "small", lengths, CPU)


def grow(name: str, repeats: int) -> list[dict[str, Any]]:
    """Step time of each method for each value of one thing."""
    rows = []
    for value in VALUES[name]:
        ready = {method: training(method, {name: value}) for method in METHODS}
        steps = {method: one.step for method, one in ready.items()}
        seconds = time_interleaved(steps, repeats, 1, CPU)
        for method, times in seconds.items():
            record = ready[method].record()
            rows.append({"method": method, "value": value, "ms": spread(times), **record})
    return rows


def choosing(columns: int) -> tuple[Callable[[], None], int]:
    """R-KV's choice for one layer, and the bytes of the keys that it is made from."""
    torch.manual_seed(0)
    keys = torch.randn(ROWS, HEADS, columns, SIZE)
    queries = torch.randn(ROWS, HEADS * GROUP, ANSWER, SIZE)
    mask = torch.ones(ROWS, columns, dtype=torch.bool)
    answer = torch.ones(ROWS, ANSWER, dtype=torch.bool)

    @torch.no_grad()
    def choose() -> None:
        attention = answer_attention(queries, keys, mask, SIZE**-0.5)
        RKV(lam=0.1).keep(EvictionInputs(keys, mask, attention, answer), BUDGET)

    return choose, keys.numel() * 4


def compression(columns: int, repeats: int) -> dict[str, Any]:
    """Time of R-KV's choice, and what it holds at its peak beyond keys and queries."""
    choose, bytes_of_keys = choosing(columns)
    seconds = time_interleaved({"rkv": choose}, repeats, 2, CPU)["rkv"]
    return {
        "value": columns,
        "ms": spread(seconds),
        "peak_bytes_beyond": held_alone(columns),
        "bytes_of_keys": bytes_of_keys,
        "bytes_of_all_pairs": 4 * ROWS * HEADS * columns**2,
    }


def held_alone(columns: int) -> int:
    """Bytes, in a process of its own that gives back what it frees at once."""
    command = [sys.executable, __file__, "--held", str(columns)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "16384", "MALLOC_TRIM_THRESHOLD_": "0"}
    return int(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)


def held(columns: int) -> int:
    """Bytes of this process's peak above what it held before."""
    choose, _ = choosing(columns)
    choosing(1)[0]()  # what the first call of everything brings
    with peak_memory(CPU) as nothing:
        pass
    with peak_memory(CPU) as peak:
        choose()
    return peak.bytes - nothing.bytes


def draw(told: dict[str, Any], path: Path) -> None:
    """A panel for each thing; the last is the compression's memory."""
    figure = Figure(figsize=(13, 6.4), layout="constrained")
    panels = figure.subplots(2, 4).flatten()
    for axes, (name, rows) in zip(panels, told["steps"].items(), strict=False):
        for method, colour in METHODS.items():
            own = [row for row in rows if row["method"] == method]
            _line(axes, own, "ms", method, colour)
        _tidy(axes, NAMES[name], "ms a step")
    panels[0].legend(frameon=False)
    time, memory = panels[5:7]
    _line(time, told["compression"], "ms", "R-KV", METHODS["kava"])
    _tidy(time, NAMES["N_C"], "ms a layer, compression alone")
    x = [row["value"] for row in told["compression"]]
    for key, label, style in _MEMORY:
        memory.plot(x, [row[key] / 1e6 for row in told["compression"]], style, label=label)
    memory.set(xscale="log", yscale="log")
    memory.legend(frameon=False)
    _tidy(memory, NAMES["N_C"], "MB a layer")
    panels[7].axis("off")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


_MEMORY = (
    ("peak_bytes_beyond", "held at the peak", "o-"),
    ("bytes_of_keys", "the keys", "s--"),
    ("bytes_of_all_pairs", "N_C x N_C would be", ":"),
)


def _line(axes: Any, rows: list[dict[str, Any]], key: str, label: str, colour: str) -> None:
    middle = [row[key]["median"] for row in rows]
    low = [m - row[key]["quartile_1"] for m, row in zip(middle, rows, strict=True)]
    high = [row[key]["quartile_3"] - m for m, row in zip(middle, rows, strict=True)]
    x = [row["value"] for row in rows]
    axes.errorbar(x, middle, (low, high), fmt="o-", ms=4, color=colour, label=label, capsize=2)


def _tidy(axes: Any, x: str, y: str) -> None:
    axes.set(xlabel=x, ylabel=y)
    if axes.get_yscale() == "linear":
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Measure, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--held", type=int, metavar="N_C", help="print bytes, and nothing else")
    given = parser.parse_args()
    if given.held:
        print(held(given.held))
        return
    console = Console(soft_wrap=True)
    steps = {}
    for name in VALUES:
        steps[name] = grow(name, given.repeats)
        own = [row for row in steps[name] if row["method"] == "kava"]
        line = ", ".join(f"{row['value']}: {row['ms']['median']:.0f}" for row in own)
        console.print(f"kava, ms a step by {NAMES[name]}: {line}", highlight=False)
    told = {
        "what": "milliseconds of a training step with one thing varied; of R-KV alone by N_C",
        "base": BASE,
        "steps": steps,
        "compression": [compression(columns, given.repeats) for columns in N_C],
        **provenance(),
    }
    for row in told["compression"]:
        line = f"N_C {row['value']}: {row['ms']['median']:.1f} ms"
        console.print(f"{line}, {row['peak_bytes_beyond'] / 1e6:.1f} MB", highlight=False)
    write_json(given.output, told)
    draw(told, given.output.with_suffix(".png"))
    console.print(f"written {given.output} and its picture", highlight=False)


if __name__ == "__main__":
    main()
