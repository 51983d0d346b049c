"""`kava serve` under load: throughput of one client against many, then saturation with leavers.

    OMP_NUM_THREADS=1 python benchmarks/serve.py checkpoints/quickstart/kava --minutes 10

Every answer is compared with the one that the same question gets offline, on its own. At saturation
some clients leave: before their answer begins, or in the middle of a stream; none of the others may
notice. An answer that does not come, or not whole, is lost. Memory is read every second; what
counts is the slope of a line through the readings after the first fifth. Writes
results/bench/serve.json (its summary's `answers` are those of all measurements, `saturation` has
its own); status 1 if an answer was wrong or lost, memory grew, or many clients get less than four
times the answers of one. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serving import Memory, about, offline_answers, service

from kava.system.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "serve.json"
NEW_TOKENS = 8
RATIO = 4  # at least, between the throughput of many clients and of one
GROWTH_MB = 10  # that the line through the readings may rise over the whole of saturation
PATIENCE = 120  # seconds after which an answer is lost
LEAVERS = 0.1  # share of the questions at saturation


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
    expected = offline_answers(given.run, given.questions, NEW_TOKENS)
    with service(given.run, "m", "--max-new-tokens", str(NEW_TOKENS)) as (port, pid):
        told = measure(port, expected, given, pid)
    write_json(given.output, {**told, **about()})
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
    with Memory(pid, every=1.0) as memory:
        soak = asyncio.run(load(port, expected, given.clients, 60 * given.minutes, LEAVERS))
    soak["waiting_afterwards"] = _waiting(port)
    soak["memory"] = grown = growth(memory.values)
    per_second = [statistics.median(r["per_second"] for r in runs) for runs in (one, many)]
    runs = (*one, *many, soak)
    summary = {
        "one_client_per_second": round(per_second[0], 1),
        "many_clients_per_second": round(per_second[1], 1),
        "clients": given.clients,
        "ratio": round(per_second[1] / per_second[0], 2),
        "saturation_minutes": given.minutes,
        "answers": sum(run["answers"] for run in runs),
        "wrong": sum(run["wrong"] for run in runs),
        "lost": sum(run["lost"] + run["refused"] for run in runs),
        "left_in_the_middle": soak["left"],
        "memory_mb": grown["mean_mb"],
        "memory_rise_mb": grown["rise_mb"],
    }
    summary["ok"] = (
        summary["wrong"] == summary["lost"] == soak["waiting_afterwards"] == 0
        and grown["rise_mb"] < GROWTH_MB
        and summary["ratio"] >= RATIO
    )
    what = f"POST /v1/completions, greedy, at most {NEW_TOKENS} new tokens, connections kept"
    return {"what": what, "summary": summary, "one": one, "many": many, "saturation": soak}


def growth(values: Sequence[float]) -> dict[str, Any]:
    """A line by least squares through readings at equal distances, without the first fifth.

    `rise_mb` is how far it rises over all of them; two readings alone would tell their noise.
    """
    kept = values[len(values) // 5 :]
    slope = statistics.linear_regression(range(len(kept)), kept).slope if len(kept) > 1 else 0.0
    return {
        "readings": len(values),
        "mean_mb": round(statistics.fmean(kept), 1),
        "highest_mb": max(values),
        "rise_mb": round(slope * len(values), 2),
        "every_mb": list(values[:: max(1, len(values) // 100)]),
    }


async def load(
    port: int, expected: dict[str, str], clients: int, seconds: float, leavers: float = 0.0
) -> dict[str, Any]:
    """So many clients, each asking its next question when it has its answer."""
    end = time.perf_counter() + seconds
    made = [_Client(port, expected, random.Random(i), leavers) for i in range(clients)]
    await asyncio.gather(*(client.ask_until(end) for client in made))
    counts: Counter[str] = sum((client.counts for client in made), Counter())
    times = sorted(t for client in made for t in client.times)
    return {
        "clients": clients,
        "answers": len(times),
        "per_second": len(times) / seconds,
        "ms_median": round(1000 * times[len(times) // 2], 2) if times else None,
        "ms_95": round(1000 * times[int(0.95 * len(times))], 2) if times else None,
        **{name: counts[name] for name in ("sent", "wrong", "lost", "refused", "left")},
    }


class _Client:
    """Every question that it sends ends in exactly one of `times`, `wrong`, `lost` (no answer, or
    not all of it), `refused` (another status than 200) and `left` (it did not wait)."""

    def __init__(self, port: int, expected: dict[str, str], draw: random.Random, leavers: float):
        self.port, self.expected, self.draw, self.leavers = port, expected, draw, leavers
        self.questions = list(expected)
        self.counts: Counter[str] = Counter()
        self.times: list[float] = []
        self.writer: asyncio.StreamWriter | None = None

    async def ask_until(self, end: float) -> None:
        """One question after the other, on one connection as long as it lasts."""
        while time.perf_counter() < end:
            if self.writer is None:
                self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
            self.counts["sent"] += 1
            leaves = self.draw.random() < self.leavers
            try:
                await asyncio.wait_for(self._leave() if leaves else self._ask(), PATIENCE)
            except (asyncio.IncompleteReadError, OSError):
                self.counts["lost"] += 1
                self._close()
        self._close()

    async def _ask(self) -> None:
        question, begin = self.draw.choice(self.questions), time.perf_counter()
        await self._send(question)
        status, body = await _response(self.reader)
        if status != 200:
            self.counts["refused"] += 1
        elif body["choices"][0]["text"] != self.expected[question]:
            self.counts["wrong"] += 1
        else:
            self.times.append(time.perf_counter() - begin)

    async def _leave(self) -> None:
        """While the answer is thought about, or after some of a stream."""
        streams = self.draw.random() < 0.5
        await self._send(self.draw.choice(self.questions), stream=streams)
        if streams:
            await self.reader.readuntil(b"data: ")
        else:
            await asyncio.sleep(0.02 * self.draw.random())
        self._close()
        self.counts["left"] += 1

    async def _send(self, question: str, **more: Any) -> None:
        assert self.writer is not None
        self.writer.write(_request({"model": "m", "prompt": question, **more}))
        await self.writer.drain()

    def _close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            self.writer = None


def _request(fields: dict[str, Any]) -> bytes:
    body = json.dumps(fields).encode()
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


def _waiting(port: int) -> int:
    """Questions that are still in the queue a moment after the last client has gone."""
    time.sleep(2)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/health") as answer:
        return json.load(answer)["waiting"]


if __name__ == "__main__":
    sys.exit(main())
