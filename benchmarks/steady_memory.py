"""Whether a training's memory grows: `python benchmarks/steady_memory.py`, a quarter of an hour.

Runs `kava train recipes/quickstart/kava.yaml` (2,000 steps) in a process of its own and reads its
resident memory as the log reaches each hundred steps. Writes results/bench/steady_memory.json;
status 1 where memory at the last step is more than 5 % above that at step 200.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kava.system.environment import provenance
from kava.system.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "steady_memory.json"
FIRST, MOST = 200, 1.05


def resident(process: int) -> int | None:
    """Bytes that a process holds; None once it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    held = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(held[0]) * 1024 if held else None


def last_step(metrics: Path) -> int:
    """The last step that was logged."""
    if not metrics.is_file():
        return 0
    steps = []
    for line in metrics.read_text(encoding="utf-8").splitlines():
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            continue  # being written
    return max(steps, default=0)


def watch(recipe: str, steps: int, run: Path) -> dict[int, int]:
    """Bytes at each hundred steps, validation left out so that every step is alike."""
    command = [sys.executable, "-m", "kava", "train", recipe, "-o", str(run)]
    command += [f"train.steps={steps}", "train.log_every=20", "eval.every=null"]
    found: dict[int, int] = {}
    with (run.parent / "output.txt").open("w", encoding="utf-8") as output:
        training = subprocess.Popen(command, stdout=output, stderr=output)
        while training.poll() is None:
            step, held = last_step(run / "metrics.jsonl") // 100 * 100, resident(training.pid)
            if step and held and step not in found:
                found[step] = held
                print(f"step {step:>5}  {held / 1e6:,.1f} MB", flush=True)
            time.sleep(0.25)
    if training.returncode:
        sys.exit((run.parent / "output.txt").read_text(encoding="utf-8"))
    return found


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--recipe", default="recipes/quickstart/kava.yaml")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        held = watch(given.recipe, given.steps, Path(folder) / "run")
    last = max(held)
    ratio = held[last] / held[FIRST]
    told = {
        "what": "resident memory of `kava train`, in bytes, as its log reached each hundred steps",
        "recipe": given.recipe,
        "bytes_at_step": held,
        "last_over_first": round(ratio, 4),
        "first": FIRST,
        "last": last,
        "limit": MOST,
        **provenance(),
    }
    write_json(given.output, told)
    print(f"step {last} over step {FIRST}: {ratio:.4f} (limit {MOST}), in {given.output}")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
