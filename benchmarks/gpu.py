"""The paper's backbones on one GPU: steps, answers, memory.

    python benchmarks/gpu.py                 # all, into results/bench/gpu
    python benchmarks/gpu.py kava_1b_c64     # by name
    python benchmarks/gpu.py --trial -o /tmp/trial    # tiny shapes, anywhere: do all of them run?

Each is a call of `kava bench` in a process of its own, on random weights of the published shapes,
with the recipes of Table 6. What has a result is skipped, so that an interrupted run goes on. What
fails, as where memory runs out, gets a result too, which says so; --again does those anew. Nothing
else should run on the machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from kava.system.environment import provenance
from kava.system.files import write_json

FOLDER = Path(__file__).resolve().parents[1] / "results" / "bench" / "gpu"
SECONDS = 420  # that one may take, compiling included
REPEATS = ("--repeats", "8", "--warm-up", "3")
#: Of written steps in sentences, twice as many tokens as in equations (`kava.sweeps.cost`).
SENTENCES = ("--reasoning", "82")
METHODS = ("cot", "no_cot", "codi", "pccot", "kava")
TRIAL = (
    "--shape", "llama:hidden_size=32,intermediate_size=64,num_hidden_layers=2,"
    "num_attention_heads=4,num_key_value_heads=2,vocab_size=100",
    "--question", "9:11", "--reasoning", "6", "--repeats", "1", "--warm-up", "0",
)  # fmt: skip
TRIAL_SETTINGS = (
    "train.batch_size=4",
    "train.micro_batch_size=2",
    "lora.r=2",
    "train.compile=false",
)


@dataclass(frozen=True)
class Measurement:
    """One call of `kava bench`.

    recipes: files under recipes/. settings: keys of a recipe. words: further options.
    """

    command: str
    recipes: tuple[str, ...]
    settings: tuple[str, ...] = ()
    words: tuple[str, ...] = ()

    def call(self, file: Path, trial: bool) -> list[str]:
        """What is run."""
        recipes = [f"recipes/{name}.yaml" for name in self.recipes]
        settings = self.settings + (TRIAL_SETTINGS if trial else ())
        words = (*REPEATS, *self.words, *(TRIAL if trial else ()))
        chosen = ("--set", *settings) if settings else ()
        whole = ["bench", self.command, *recipes, *words, *chosen, "-o", str(file)]
        return [sys.executable, "-m", "kava", *whole]


def steps(setting: str, *keys: str, words: tuple[str, ...] = ()) -> Measurement:
    """KaVa's step of one of the paper's settings."""
    return Measurement("train", (f"{setting}/kava",), keys, words)


def answers(setting: str, size: int) -> Measurement:
    """So many questions together, by each method."""
    recipes = tuple(f"{setting}/{name}" for name in METHODS)
    return Measurement("generate", recipes, words=("--batch", str(size)))


def micro(size: int) -> str:
    """Rows in memory at once."""
    return f"train.micro_batch_size={size}"


COMPILED, GROUPED = "train.compile=true", "train.group_by_length=true"
CHECKPOINTED = "train.gradient_checkpointing=true"
#: In the order of what matters most, for whoever has little time. Rows at once are those that take
#: most of 60 GB, or of 40 for 3B, as results/bench/memory*.json count them.
ALL = {
    "kava_1b_32": steps("llama1b_aug", micro(32)),
    "kava_1b_c128_grouped": steps("llama1b_aug", micro(128), COMPILED, GROUPED),
    "kava_1b_c64": steps("llama1b_aug", micro(64), COMPILED),
    "kava_1b_c64_grouped": steps("llama1b_aug", micro(64), COMPILED, GROUPED),
    "kava_3b_checkpointed": steps("llama3b_aug", micro(128), CHECKPOINTED, GROUPED),
    "kava_3b_c128_checkpointed": steps("llama3b_aug", micro(128), CHECKPOINTED, GROUPED, COMPILED),
    **{f"generate_1b_x{size}": answers("llama1b_aug", size) for size in (1, 64, 1024, 4096)},
    "methods_1b": Measurement(
        "train", tuple(f"llama1b_aug/{name}" for name in METHODS), (micro(64), COMPILED, GROUPED)
    ),
    "kava_05b_c128_grouped": steps("qwen05b_aug", micro(128), COMPILED, GROUPED),
    "kava_1b_nl_c64_grouped": steps(
        "llama1b_aug_nl", micro(64), COMPILED, GROUPED, words=SENTENCES
    ),
    "kava_05b_nl_c64_grouped": steps(
        "qwen05b_aug_nl", micro(64), COMPILED, GROUPED, words=SENTENCES
    ),
    "kava_3b_nl_c64_checkpointed": steps(
        "llama3b_aug_nl", micro(64), COMPILED, GROUPED, CHECKPOINTED, words=SENTENCES
    ),
    "kava_1b_64": steps("llama1b_aug", micro(64)),
    "kava_1b_128": steps("llama1b_aug", micro(128)),
    "kava_1b_c32": steps("llama1b_aug", micro(32), COMPILED),
    "kava_1b_c64_checkpointed": steps("llama1b_aug", micro(64), COMPILED, CHECKPOINTED),
    "kava_3b_c16_grouped": steps("llama3b_aug", micro(16), COMPILED, GROUPED),
}


def measure(name: str, folder: Path, trial: bool) -> str:
    """Run one; its headline, or why there is none."""
    file, begin = folder / f"{name}.json", time.perf_counter()
    call = ALL[name].call(file, trial)
    try:
        done = subprocess.run(call, capture_output=True, text=True, timeout=SECONDS)
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    except subprocess.TimeoutExpired:
        done, last = None, f"not done after {SECONDS} s"
    if done is None or done.returncode:
        write_json(file, {"failed": last, "call": call[1:], **provenance()})
    return f"{_headline(file)}  ({time.perf_counter() - begin:.0f} s)"


def _headline(file: Path) -> str:
    told = json.loads(file.read_text(encoding="utf-8"))
    if "failed" in told:
        return f"failed: {told['failed']}"
    parts = []
    for method, rows in told["rows"].items():
        for row in rows if isinstance(rows, list) else [rows]:
            memory = row["peak_memory"]["bytes"] / 1e9
            share = f"MFU {100 * row['mfu']:.1f} %"
            ms = f"{row['ms_per_question']:.3f} ms a row"
            parts.append(f"{method}: {ms}, {share}, {memory:.1f} GB")
    return "; ".join(parts)


def main() -> None:
    """Measure what is asked for, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(ALL))
    parser.add_argument("-o", "--output", type=Path, default=FOLDER)
    parser.add_argument("--trial", action="store_true", help="tiny shapes, one round")
    parser.add_argument("--again", action="store_true", help="what failed before too")
    given = parser.parse_args()
    if unknown := set(given.names) - set(ALL):
        parser.error(f"no measurement '{min(unknown)}'; known are {', '.join(ALL)}")
    given.output.mkdir(parents=True, exist_ok=True)
    for name in given.names or ALL:
        file = given.output / f"{name}.json"
        if file.exists() and not (given.again and "failed" in json.loads(file.read_text())):
            print(f"{name}: there already, {_headline(file)}", flush=True)
            continue
        print(f"{name}: {measure(name, given.output, given.trial)}", flush=True)


if __name__ == "__main__":
    main()
