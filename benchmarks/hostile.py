"""kava under hostile requests and files: schemathesis, a fuzzer of our own, and planted files.

    OMP_NUM_THREADS=1 python benchmarks/hostile.py checkpoints/quickstart/kava --output FILE

First come the files of `hostile_files.py`, whose results are written to hostile_files.json beside
FILE. Then it starts the service in a process of its own and sends at least 10,000 requests over
real HTTP, sane questions among them. Fails on a status 5xx other than those that pass by themselves
(503, 504), on a status that a request of its kind must not get, on a traceback or a file's path in
an error, on a sane question whose answer is not the offline one, on connections that stay open for
ever, and on memory that grows. The fuzzer's requests are made from their numbers: the same ones
every time.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import select
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hostile_files
from attacks import BUSY, CLOSED, LEFT, Attack, Target, attack
from serving import Memory, about, offline_answers, service

from kava.system.files import write_json

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "serve_hostile.json"
NEW_TOKENS = 64
GROWTH_MB = 64  # of resident memory, from after the warm-up to after the last request
PEAK_MB = 256  # the same, to the highest value on the way
# Requests before memory is measured. Allocators keep what the largest request of each kind needed:
# over 28,000 requests memory rose by 90 MB in the first third, and not in the others.
WARM_UP = 4000
SANE_EVERY = 12  # hostile requests for each sane question
PATIENCE = 0.3  # seconds without an answer after which a client says that it sends no more
HELD = 40  # connections that are opened first, send part of a request and wait
LEAKS = re.compile(
    rb'Traceback|File "|\.py\b|site-packages|/(home|root|usr|tmp|work)/|pydantic|starlette', re.I
)
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_schema_conformance", "response_headers_conformance", "negative_data_rejection",
    "ignored_auth", "unsupported_method", "allow_header_conformance",
)  # fmt: skip


@dataclass
class Tally:
    """What came back: counts by kind and status, and each thing that is wrong."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    sane: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, kind: str, status: int | str, wrong: str | None = None) -> None:
        """From any thread."""
        with self._lock:
            self.counts[kind, str(status)] += 1
            if wrong is not None:
                self.wrong.append(f"{kind}: {wrong}")

    def total(self) -> int:
        """Requests."""
        return sum(self.counts.values())

    def by_kind(self) -> dict[str, dict[str, int]]:
        """{kind: {status: count}}."""
        kinds = sorted({kind for kind, _ in self.counts})
        return {
            k: {s: n for (kind, s), n in sorted(self.counts.items()) if kind == k} for k in kinds
        }

    def by_status(self) -> dict[str, int]:
        """{status: count}."""
        found: Counter[str] = Counter()
        for (_, status), count in self.counts.items():
            found[status] += count
        return dict(sorted(found.items()))


# -- the fuzzer ----------------------------------------------------------------------------------


def fuzz(
    port: int, target: Target, offline: Mapping[str, str], count: int, tally: Tally,
    seed: int = 0, clients: int = 8,
) -> None:  # fmt: skip
    """Send `count` attacks, each on a connection of its own, from several clients at once."""

    def client(first: int) -> None:
        for number in range(first, count, clients):
            if number % SANE_EVERY == 0:
                _ask(port, target, offline, random.Random(number), tally)
            made = attack(number, target, seed)
            status, wrong = send(port, made)
            tally.add(made.kind, status, wrong and f"#{number} {wrong}")

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))


def send(port: int, made: Attack, timeout: float = 60.0) -> tuple[int | str, str | None]:
    """The status that came back, and what is wrong with it, if anything is."""
    try:
        status, headers, body = _exchange(port, made, timeout)
    except TimeoutError:
        return "none", f"no answer within {timeout:.0f} s"
    except http.client.HTTPException as error:
        return "none", f"what came back is not HTTP: {error!r}"
    return status, _problem(made, status, headers, body)


def _problem(made: Attack, status: int | str, headers: Any, body: bytes) -> str | None:
    if status not in made.allowed:
        return f"status {status}, expected one of {sorted(map(str, made.allowed))}: {body[:300]!r}"
    if not isinstance(status, int):
        return None
    if status != 200 and (leak := LEAKS.search(body)):
        return f"status {status} tells {leak[0]!r}: {body[:300]!r}"
    if status == 429 and not headers.get("retry-after"):
        return "status 429 without Retry-After"
    if status >= 400 and made.method != "HEAD":
        try:
            message = json.loads(body)["error"]["message"]
        except (ValueError, TypeError, KeyError):
            # What is not even HTTP never reaches the application.
            return None if body == b"Invalid HTTP request received." else f"not an error: {body!r}"
        if not message or len(message) > 1000:
            return f"status {status} with a message of {len(message)} letters"
    return None


def _exchange(port: int, made: Attack, timeout: float) -> tuple[int | str, Any, bytes]:
    with socket.create_connection(("127.0.0.1", port), timeout) as raw:
        try:
            for i, part in enumerate(made.parts):
                time.sleep(made.pause if i else 0)
                raw.sendall(part)
        except OSError:
            pass  # closed before all was read: there may be an answer all the same
        if made.then == "leave":
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return LEFT, {}, b""
        if made.then == "end" and not select.select([raw], [], [], PATIENCE)[0]:
            try:
                raw.shutdown(socket.SHUT_WR)
            except OSError:
                return CLOSED, {}, b""
        try:
            answer = http.client.HTTPResponse(raw, method=made.method)
            answer.begin()
            return answer.status, answer.headers, answer.read()
        except (http.client.RemoteDisconnected, ConnectionError):
            return CLOSED, {}, b""


def _ask(
    port: int, target: Target, offline: Mapping[str, str], draw: random.Random, tally: Tally
) -> None:
    """A sane question, in one of three ways; its answer has to be the offline one."""
    question = draw.choice(target.questions)
    way = draw.choice(("completion", "chat", "stream"))
    body: dict[str, Any] = {"model": target.model, "prompt": question}
    if way == "chat":
        body = {"model": target.model, "messages": [{"role": "user", "content": question}]}
    path = "/v1/chat/completions" if way == "chat" else "/v1/completions"
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {target.api_key}"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        sent = json.dumps({**body, "stream": way == "stream"})
        connection.request("POST", path, sent, headers)
        answer = connection.getresponse()
        told = answer.read()
    finally:
        connection.close()
    tally.sane += 1
    wrong = None
    if answer.status == 200:
        text = _text(way, told)
        if text != offline[question]:
            wrong = f"asked {question!r}, got {text!r}, offline it is {offline[question]!r}"
    elif answer.status not in BUSY:
        wrong = f"asked {question!r}, got {answer.status} {told[:300]!r}"
    tally.add("sane", answer.status, wrong)


def _text(way: str, told: bytes) -> str:
    if way != "stream":
        choice = json.loads(told)["choices"][0]
        return choice["message"]["content"] if way == "chat" else choice["text"]
    events = [line[6:] for line in told.decode().splitlines() if line.startswith("data: ")]
    return "".join(json.loads(e)["choices"][0]["text"] for e in events if e != "[DONE]")


@contextmanager
def held(
    port: int, target: Target, tally: Tally, count: int = HELD, within: float = 30.0
) -> Iterator[None]:
    """Keep connections open that never finish their request; the service has to close them.

    Args:
        within: seconds after which, at the end of the block, one that is still open is wrong.
    """
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {target.api_key}\r\n"
    ).encode()
    begun = [b"", b"GET /heal", head + b"X-A: ", head + b"Content-Length: 900\r\n\r\n{"]
    opened = []
    for i in range(count):
        raw = socket.create_connection(("127.0.0.1", port), within)
        raw.sendall(begun[i % len(begun)])
        opened.append(raw)
    try:
        yield
        end = time.monotonic() + within
        for raw in opened:
            raw.settimeout(max(0.01, end - time.monotonic()))
            try:
                while raw.recv(4096):
                    pass
                tally.add("held", CLOSED)
            except TimeoutError:
                tally.add("held", "open", f"a connection is still open after {within:.0f} s")
            except ConnectionError:
                tally.add("held", CLOSED)
    finally:
        for raw in opened:
            raw.close()


# -- schemathesis --------------------------------------------------------------------------------


def schemathesis_run(
    port: int, target: Target, examples: int, tally: Tally, seed: int = 0,
    paths: str = "/",
) -> dict[str, int]:  # fmt: skip
    """Schemathesis on the service's own schema; how often each check ran.

    Args:
        examples: random cases for each operation, after the systematic ones.
        paths: a pattern of those to test.
    """
    import schemathesis
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema

    headers = {"Authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    config = SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": headers,
            "request-timeout": 60,
            "continue-on-failure": True,
            "generation": {"max-examples": examples, "no-shrink": True, "deterministic": True},
            "checks": {"enabled": False, **{name: {"enabled": True} for name in CHECKS}},
            "phases": {"stateful": {"enabled": False}},  # no request leads to another one
            "warnings": False,
        }
    )
    url = f"http://127.0.0.1:{port}/openapi.json"
    schema = schemathesis.openapi.from_url(url, config=config, headers=headers)
    ran: Counter[str] = Counter()
    for event in from_schema(schema.include(path_regex=paths)).execute():
        if isinstance(event, events.FatalError):
            raise event.exception
        if isinstance(event, events.NonFatalError):
            tally.add("schemathesis", "error", f"{event.label}: {event.value!r}")
        if isinstance(event, events.ScenarioFinished):
            _count(event.recorder, ran, tally)
    return dict(sorted(ran.items()))


def _count(recorder: Any, ran: Counter[str], tally: Tally) -> None:
    for interaction in recorder.interactions.values():
        response = interaction.response
        if response is None:
            tally.add("schemathesis", "none", f"{recorder.label}: no answer")
            continue
        leak = response.status_code != 200 and LEAKS.search(response.content)
        told = f"{recorder.label}: tells {leak[0]!r}: {response.content[:300]!r}" if leak else None
        tally.add("schemathesis", response.status_code, told)
    for checks in recorder.checks.values():
        for check in checks:
            ran[check.name] += 1
            if check.failure_info is not None:
                failure, code = check.failure_info.failure, check.failure_info.code_sample
                why = f"{recorder.label}: {check.name}: {failure.message} [{code[:600]}]"
                tally.wrong.append(f"schemathesis: {why}")


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run")
    parser.add_argument("--requests", type=int, default=8000, help="of the fuzzer")
    parser.add_argument("--examples", type=int, default=500, help="of schemathesis, per operation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    harmful = hostile_files.run(given.output.with_name(hostile_files.FILE.name))
    offline = offline_answers(given.run, 50, NEW_TOKENS)
    target = Target("m", tuple(offline), api_key="kava-hostile-key")
    warm, tally, begin = Tally(), Tally(), time.perf_counter()
    with service(given.run, "m", "--max-new-tokens", str(NEW_TOKENS), key=target.api_key) as (
        port,
        pid,
    ):
        fuzz(port, target, offline, WARM_UP, warm, seed=given.seed + 1)
        with Memory(pid) as memory:
            with held(port, target, tally):
                fuzz(port, target, offline, given.requests, tally, seed=given.seed)
            checks = schemathesis_run(port, target, given.examples, tally, given.seed)
            time.sleep(1)
    told = _told(tally, checks, memory, time.perf_counter() - begin)
    write_json(given.output, {**told, **about("schemathesis", "hypothesis")})
    print(json.dumps(told["summary"], indent=1))
    print("\n".join([*harmful, *tally.wrong[:20]]), file=sys.stderr)
    return 0 if told["summary"]["ok"] and not harmful else 1


def _told(tally: Tally, checks: dict[str, int], memory: Memory, seconds: float) -> dict[str, Any]:
    before, after, peak = memory.values[0], memory.values[-1], max(memory.values)
    bounded = after - before <= GROWTH_MB and peak - before <= PEAK_MB
    summary = {
        "requests": tally.total(),
        "sane_questions": tally.sane,
        "by_status": tally.by_status(),
        "wrong": len(tally.wrong),
        "resident_mb": {"before": before, "after": after, "peak": peak},
        "allowed_growth_mb": {"after": GROWTH_MB, "peak": PEAK_MB},
        "seconds": round(seconds, 1),
        "ok": not tally.wrong and bounded,
    }
    return {
        "what": "hostile requests to `kava serve`: statuses that came back, and its memory",
        "summary": summary,
        "by_kind": tally.by_kind(),
        "schemathesis_checks": checks,
        "resident_mb": memory.values[:: max(1, len(memory.values) // 100)],
        "wrong": tally.wrong[:50],
    }


if __name__ == "__main__":
    sys.exit(main())
