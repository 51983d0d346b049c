"""`kava serve`: how long a client with one question waits beside a client that asks for the most.

    OMP_NUM_THREADS=1 python benchmarks/beside.py checkpoints/quickstart/kava

One client sends a request of about 3 kB again and again: 16 prompts, 16 sampled answers to each,
with a seed, and as many latent iterations as the service allows. The other asks one greedy question
at a time and repeats it when the queue is full. Its waiting time is counted in seconds and in
batches that the service ran meanwhile; batches do not depend on the speed of the machine. Writes
results/bench/serve_beside.json; status 1 if an answer is wrong or a question waits for more than
`BATCHES` batches.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from serving import about, offline_answers, service

from kava.system.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "serve_beside.json"
NEW_TOKENS = 64
ITERATIONS = 64  # asked for first; then what the refusal of it names as the most
BATCHES = 5  # one that runs, one of each request, and one that ends before or after the question


def post(port: int, body: Mapping[str, Any], timeout: float) -> tuple[int, Any]:
    """The status and the body of an answer to `/v1/completions`; status 0 if none came in time."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        json.dumps({"model": "m", **body}).encode(),
        {"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)
    except TimeoutError:
        return 0, None


def batches(port: int) -> int:
    """Number of batches that the service has finished."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    line = next(line for line in lines if line.startswith("kava_batch_size_count"))
    return round(float(line.rpartition(" ")[2]))


def greedy_body(port: int, questions: list[str]) -> dict[str, Any]:
    """The request that costs the service the most."""
    body = {
        "prompt": questions[:16], "n": 16, "seed": 1, "temperature": 1.0,
        "max_tokens": NEW_TOKENS, "num_iterations": ITERATIONS,
    }  # fmt: skip
    status, answer = post(port, {**body, "prompt": questions[0], "n": 1}, 60)
    if status == 400:
        most = [word for word in answer["error"]["message"].split() if word.isdigit()]
        body["num_iterations"] = int(most[-1])
    return body


def ask_for(port: int, offline: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Ask one question after the other for so many seconds; how long each waited."""
    waits, ran, wrong, refused = [], [], 0, 0
    questions, end = list(offline), time.monotonic() + seconds
    while time.monotonic() < end:
        question = questions[len(waits) % len(questions)]
        begin, before, status = time.monotonic(), batches(port), 429
        while status == 429:
            status, answer = post(port, {"prompt": question, "max_tokens": NEW_TOKENS}, 120)
            refused += status == 429
            time.sleep(0.05 if status == 429 else 0)
        waits.append(time.monotonic() - begin)
        ran.append(batches(port) - before)
        wrong += status != 200 or answer["choices"][0]["text"] != offline[question]
    return {
        "questions": len(waits),
        "seconds": {"median": round(statistics.median(waits), 3), "most": round(max(waits), 3)},
        "batches": {"median": statistics.median(ran), "most": max(ran)},
        "refused_with_429": refused,
        "wrong": wrong,
    }


def measure(port: int, offline: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """The same client alone, and beside the greedy one."""
    alone = ask_for(port, offline, min(10.0, seconds))
    body, statuses, stop = greedy_body(port, list(offline)), Counter(), threading.Event()

    def attack() -> None:
        while not stop.is_set():
            statuses[str(post(port, body, 120)[0])] += 1

    attacker = threading.Thread(target=attack)
    attacker.start()
    time.sleep(1)
    beside = ask_for(port, offline, seconds)
    stop.set()
    attacker.join()
    return {
        "greedy_request": {name: value for name, value in body.items() if name != "prompt"},
        "greedy_bytes": len(json.dumps(body)),
        "greedy_statuses": dict(statuses),
        "alone": alone,
        "beside": beside,
        "ok": not alone["wrong"] + beside["wrong"] and beside["batches"]["most"] <= BATCHES,
    }


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    offline = offline_answers(given.run, 50, NEW_TOKENS)
    with service(given.run, "m", "--max-new-tokens", str(NEW_TOKENS)) as (port, _):
        measured = measure(port, offline, given.seconds)
    what = "a client with one question beside one that asks for the most"
    write_json(given.output, {"what": what, **measured, **about()})
    print(json.dumps(measured, indent=1))
    return 0 if measured["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
