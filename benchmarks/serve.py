"""`kava serve` under load: throughput of one client against 32, then saturation with leavers.

    OMP_NUM_THREADS=1 python benchmarks/serve.py checkpoints/quickstart/kava --minutes 10

Every answer is compared with the one that the same questions get offline, one at a time. Some
clients close their connection in the middle of an answer; none of the others may notice. Writes
results/bench/serve.json; status 1 if an answer was wrong or missing, or memory grew.
Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kava.provenance import provenance, write_json
from kava.run import open_reasoner
from kava.tasks import load_task

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "serve.json"
NEW_TOKENS = 8
GROWTH = 1.05  # of resident memory from the end of the first tenth to the end


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20, help="of each throughput measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10, help="of saturation")
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    reasoner = open_reasoner(given.run)
    questions = [e.question for e in load_task("synthetic", limit=given.questions).examples]
    expected = {q: reasoner.answer(reasoner.think([q]), NEW_TOKENS)[0].text for q in questions}
    del reasoner
    port = _free_port()
    words = [sys.executable, "-m", "kava", "serve", given.run, "--port", str(port), "--name", "m"]
    words += ["--max-new-tokens", str(NEW_TOKENS)]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    try:
        _wait(port)
        told = measure(port, expected, given, server.pid)
    finally:
        server.terminate()
        server.wait(60)
    write_json(given.output, {**told, **provenance()})
    print(json.dumps(told["summary"], indent=1))
    return 0 if told["summary"]["ok"] else 1


def measure(port: int, expected: dict[str, str], given: Any, pid: int) -> dict[str, Any]:
    """Throughputs, one and many clients in turn, and then the long run."""
    asyncio.run(load(port, expected, 4, 3.0))  # warm-up
    one, many = [], []
    for _ in range(given.repeats):
        one.append(asyncio.run(load(port, expected, 1, given.seconds)))
        many.append(asyncio.run(load(port, expected, given.clients, given.seconds)))
        print(f"1 client {one[-1]['per_second']:.0f}/s, {given.clients} clients "
              f"{many[-1]['per_second']:.0f}/s", flush=True)  # fmt: skip
    soak = asyncio.run(saturate(port, expected, given.clients, 60 * given.minutes, pid))
    ratio = statistics.median(r["per_second"] for r in many) / statistics.median(
        r["per_second"] for r in one
    )
    wrong = sum(run["wrong"] + run["failed"] for run in (*one, *many, soak))
    grew = soak["resident_mb"][-1] / soak["resident_mb"][len(soak["resident_mb"]) // 10]
    summary = {
        "one_client_per_second": round(statistics.median(r["per_second"] for r in one), 1),
        "many_clients_per_second": round(statistics.median(r["per_second"] for r in many), 1),
        "clients": given.clients,
        "ratio": round(ratio, 2),
        "saturation_minutes": given.minutes,
        "answers": sum(run["answers"] for run in (*one, *many, soak)),
        "wrong_or_missing": wrong,
        "left_in_the_middle": soak["left"],
        "memory_growth": round(grew, 4),
        "ok": wrong == 0 and grew < GROWTH,
    }
    what = f"POST /v1/completions, greedy, at most {NEW_TOKENS} new tokens, connections kept"
    return {"what": what, "summary": summary, "one": one, "many": many, "saturation": soak}


async def load(
    port: int, expected: dict[str, str], clients: int, seconds: float, leavers: float = 0.0
) -> dict[str, Any]:
    """So many clients, each asking its next question when it has its answer."""
    end = time.perf_counter() + seconds
    tallies = await asyncio.gather(
        *(_client(port, expected, random.Random(i), end, leavers) for i in range(clients))
    )
    times = sorted(t for tally in tallies for t in tally["times"])
    return {
        "clients": clients,
        "answers": len(times),
        "per_second": len(times) / seconds,
        "ms_median": round(1000 * times[len(times) // 2], 2),
        "ms_95": round(1000 * times[int(0.95 * len(times))], 2),
        "wrong": sum(tally["wrong"] for tally in tallies),
        "failed": sum(tally["failed"] for tally in tallies),
        "left": sum(tally["left"] for tally in tallies),
    }


async def saturate(
    port: int, expected: dict[str, str], clients: int, seconds: float, pid: int
) -> dict[str, Any]:
    """Full load, every tenth question given up in the middle; memory is read on the way."""
    resident: list[float] = []

    async def read_memory() -> None:
        while True:
            resident.append(_resident_mb(pid))
            await asyncio.sleep(max(0.5, seconds / 100))

    reading = asyncio.create_task(read_memory())
    found = await load(port, expected, clients, seconds, leavers=0.1)
    reading.cancel()
    return {**found, "resident_mb": [*resident, _resident_mb(pid)]}


async def _client(
    port: int, expected: dict[str, str], draw: random.Random, end: float, leavers: float
) -> dict[str, Any]:
    tally: dict[str, Any] = {"times": [], "wrong": 0, "failed": 0, "left": 0}
    questions: Sequence[str] = list(expected)
    reader = writer = None
    while time.perf_counter() < end:
        if writer is None:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        question = draw.choice(questions)
        begin = time.perf_counter()
        writer.write(_request(question))
        await writer.drain()
        if draw.random() < leavers:
            await asyncio.sleep(0.004 * draw.random())
            writer.close()
            writer = None
            tally["left"] += 1
            continue
        status, body = await _response(reader)
        if status != 200:
            tally["failed"] += 1
        elif body["choices"][0]["text"] != expected[question]:
            tally["wrong"] += 1
        else:
            tally["times"].append(time.perf_counter() - begin)
    if writer is not None:
        writer.close()
    return tally


def _request(question: str) -> bytes:
    body = json.dumps({"model": "m", "prompt": question}).encode()
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


async def _response(reader: asyncio.StreamReader) -> tuple[int, Any]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(head.partition("content-length:")[2].partition("\r\n")[0])
    body = await reader.readexactly(length)
    return int(head.split()[1]), json.loads(body)


def _resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return round(int(next(x for x in lines if x.startswith("VmRSS")).split()[1]) / 1024, 1)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _wait(port: int) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit("the service did not start within a minute")


if __name__ == "__main__":
    sys.exit(main())
