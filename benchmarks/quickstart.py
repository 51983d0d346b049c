"""How long `kava quickstart` takes: `python benchmarks/quickstart.py`, three runs, their median.

Writes results/bench/quickstart.json. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from kava.system.environment import provenance
from kava.system.files import write_json

RUNS = 3
FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "quickstart.json"
COMMAND = ("quickstart", "--output", "run")


def main() -> None:
    """Run, print each time, write the file."""
    runs = [once() for _ in range(RUNS)]
    seconds = [run["seconds"] for run in runs]
    told = {
        "what": "wall time of `kava quickstart` from its start to its end, in seconds",
        "median_seconds": statistics.median(seconds),
        "limit_seconds": 300,
        "runs": runs,
        **provenance(),
        "command": "python benchmarks/quickstart.py",
    }
    write_json(FILE, told)
    print(f"median {told['median_seconds']} s of {RUNS} runs, in {FILE}")


def once() -> dict[str, object]:
    """One run in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-m", "kava", *COMMAND], cwd=folder, check=True)
        seconds = round(time.perf_counter() - begin, 1)
        result = json.loads((Path(folder) / "run" / "result.json").read_text(encoding="utf-8"))
    accuracy = {row["method"]: row["accuracy"] for row in result["rows"]}
    training = {row["method"]: row["train_seconds"] for row in result["rows"]}
    print(f"{seconds} s", flush=True)
    return {"seconds": seconds, "train_seconds": training, "accuracy": accuracy}


if __name__ == "__main__":
    main()
