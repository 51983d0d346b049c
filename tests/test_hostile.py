"""Whatever is sent to the service: an error that says what is wrong, and right answers to the rest.

The same code sends 10,000 requests in `benchmarks/hostile.py`.
"""

import json
import logging
import re
import socket
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

import pytest
import tiny
from _pytest.assertion.rewrite import AssertionRewritingHook

pytest.importorskip("fastapi", reason="kava[serve] is not installed")
import hostile
import httpx
from attacks import CLOSED, KINDS, LEFT, Attack, Target, attack
from hostile import Tally, fuzz, held, schemathesis_run, send
from pydantic import ValidationError
from serve import growth
from service import QUESTIONS, serving
from tokenizers import normalizers

from kava.serve.jobs import Sampling
from kava.serve.limits import Limits
from kava.serve.protocol import ChatRequest, CompletionRequest
from kava.serve.responses import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    ErrorBody,
    Health,
    Model,
    ModelList,
)

KEY = "secret-1"
LIMITS = Limits(question_tokens=64, new_tokens=12, timeout=30.0, arrival=1.5)


@pytest.fixture(scope="module")
def reasoner():
    return tiny.reasoner("llama", "kava")


@pytest.fixture(scope="module")
def offline(reasoner):
    return {q: reasoner.answer(reasoner.think([q]), LIMITS.new_tokens)[0].text for q in QUESTIONS}


@pytest.fixture(scope="module")
def port(reasoner):
    with serving(reasoner, LIMITS, KEY) as (url, _):
        yield port_of(url)


def port_of(url):
    return int(url.rpartition(":")[2])


def target():
    return Target("tiny", QUESTIONS, KEY)


def ask(port, path="/v1/completions", key=KEY, **body):
    headers = {"authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{port}{path}"
    return httpx.post(url, json={"model": "tiny", **body}, headers=headers, timeout=30)


def said(answer):
    return answer.json()["error"]["message"]


# -- what is sent at random ----------------------------------------------------------------------


def test_hostile_requests_get_errors_and_sane_questions_their_answers(port, offline):
    tally = Tally()
    with held(port, target(), tally, count=8, within=10):
        fuzz(port, target(), offline, 300, tally)
    assert tally.wrong == []
    assert set(tally.by_kind()) == {*KINDS, "sane", "held"}
    assert tally.by_kind()["sane"] == {"200": tally.sane} and tally.sane == 25
    assert tally.by_kind()["held"] == {CLOSED: 8}
    assert tally.by_status()["200"] > 50 and tally.by_status()["400"] > 80


def test_schemathesis_finds_the_schema_true(port, monkeypatch):
    # It comes with a plugin, so pytest would rewrite all of its modules: 10 s where none are kept.
    plain = [finder for finder in sys.meta_path if not isinstance(finder, AssertionRewritingHook)]
    monkeypatch.setattr(sys, "meta_path", plain)
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    tally = Tally()
    ran = schemathesis_run(port, target(), 8, tally, paths="/(v1/(completions|models)|metrics)")
    assert tally.wrong == []
    assert set(ran) == set(hostile.CHECKS) and min(ran.values()) > 250
    assert tally.by_status()["200"] > 10 and tally.by_status()["400"] > 250


def test_a_number_always_makes_the_same_request():
    made = [attack(i, target()) for i in range(300)]
    assert made == [attack(i, target()) for i in range(300)]
    assert made != [attack(i, target(), seed=1) for i in range(300)]
    assert Counter(a.kind for a in made).keys() == set(KINDS)
    assert {a.then for a in made} == {"read", "end", "leave"}


# -- that what is wrong would be seen ------------------------------------------------------------


@contextmanager
def answering(text):
    """A server that answers the first connection with this."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(100_000)
                connection.sendall(text)

        thread = threading.Thread(target=answer)
        thread.start()
        yield server.getsockname()[1]
        thread.join()


def response(status, body, *headers):
    head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n"
    return (head + "".join(f"{line}\r\n" for line in headers) + "\r\n" + body).encode()


FINE = '{"error": {"message": "no"}}'


@pytest.mark.parametrize(
    ("answer", "status", "wrong"),
    [
        (response(400, FINE), 400, None),
        (response(400, "Invalid HTTP request received."), 400, None),
        (response(500, FINE), 500, "status 500, expected one of"),
        (response(400, "Internal Server Error"), 400, "not an error"),
        (response(400, FINE.replace("no", "no" * 600)), 400, "1200 letters"),
        (response(400, FINE.replace("no", "Traceback (most")), 400, "tells b'Traceback'"),
        (response(400, FINE.replace("no", "in /" + "home/x/y")), 400, "tells b'/home/'"),
        (response(429, FINE), 429, "without Retry-After"),
        (response(429, FINE, "Retry-After: 1"), 429, None),
        (b"SSH-2.0-x\r\n", "none", "not HTTP"),
        (b"", CLOSED, "status closed, expected one of"),
    ],
)
def test_what_comes_back_is_judged(answer, status, wrong):
    with answering(answer) as port:
        found, told = send(port, Attack("x", (b"GET / HTTP/1.1\r\n\r\n",), frozenset({400, 429})))
    assert found == status
    assert told is None if wrong is None else wrong in told


def test_a_wrong_answer_to_a_sane_question_is_seen(port, offline):
    tally = Tally()
    fuzz(port, target(), {q: text + "!" for q, text in offline.items()}, 1, tally)
    assert len(tally.wrong) == 1 and "offline it is" in tally.wrong[0]


def test_a_connection_that_stays_open_is_seen():
    with socket.create_server(("127.0.0.1", 0)) as server:
        tally = Tally()
        with held(server.getsockname()[1], target(), tally, count=2, within=0.1):
            pass
    assert len(tally.wrong) == 2 and "still open" in tally.wrong[0]


def test_memory_that_grows_is_told_from_noise():
    noise = [500 + (i * 7919 % 13) for i in range(600)]
    assert abs(growth(noise)["rise_mb"]) < 1
    leak = growth([value + i / 20 for i, value in enumerate(noise)])
    assert leak["rise_mb"] == pytest.approx(30, abs=1)
    warming = growth([400 + i for i in range(100)] + noise[100:])
    assert abs(warming["rise_mb"]) < 1


# -- connections ---------------------------------------------------------------------------------


def connected(server):
    return len(server.server_state.connections)


def waits(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


def test_a_client_that_reads_no_further_is_dropped(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, arrival=0.4)
    with serving(reasoner, limits) as (url, server), socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", port_of(url)))
        raw.setblocking(False)
        request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100
        assert waits(lambda: connected(server) == 1)

        def is_dropped():
            with suppress(BlockingIOError, ConnectionError):
                raw.send(request)
            return connected(server) == 0

        assert waits(is_dropped, 15)


def test_a_refused_body_that_goes_on_is_dropped(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, arrival=0.4, body_bytes=1000)
    with serving(reasoner, limits) as (url, server):
        address = ("127.0.0.1", port_of(url))
        with socket.create_connection(address, 5) as raw:
            head = (
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n"
            )
            raw.sendall(head)
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")

            def is_dropped():
                with suppress(ConnectionError):
                    raw.send(b"x")
                return connected(server) == 0

            assert waits(is_dropped)


def test_time_starts_with_the_first_byte_of_each_request(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, arrival=1.0)
    with serving(reasoner, limits) as (url, _):
        address = ("127.0.0.1", port_of(url))
        with socket.create_connection(address, 5) as raw:
            for _ in range(2):
                time.sleep(0.7)
                raw.sendall(b"GET /health HTTP/1.1\r\n")
                time.sleep(0.7)
                raw.sendall(b"Host: localhost\r\n\r\n")
                answer = part = raw.recv(1000)
                while part and not answer.endswith(b"}"):
                    answer += (part := raw.recv(1000))
                assert answer.startswith(b"HTTP/1.1 200 ")


def test_an_answer_may_take_longer_than_its_request(reasoner, monkeypatch):
    think = reasoner.think_about

    def slowly(*given):
        time.sleep(0.5)
        return think(*given)

    monkeypatch.setattr(reasoner, "think_about", slowly)
    with serving(reasoner, Limits(question_tokens=64, new_tokens=4, arrival=0.3)) as (url, _):
        assert ask(port_of(url), prompt="w1").status_code == 200


def test_more_connections_than_allowed_are_refused(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, connections=3)
    with serving(reasoner, limits) as (url, server):
        opened = [socket.create_connection(("127.0.0.1", port_of(url)), 5) for _ in range(3)]
        assert waits(lambda: connected(server) == 3)
        answer = httpx.get(f"{url}/health")
        assert answer.status_code == 503 and "too many connections" in said(answer)
        assert int(answer.headers["retry-after"]) >= 1
        opened.pop().close()
        assert waits(lambda: connected(server) == 2)
        assert httpx.get(f"{url}/health").status_code == 200
        for one in opened:
            one.close()


def test_bodies_together_are_bounded(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, held_bytes=5000)
    with serving(reasoner, limits) as (url, _):
        address = ("127.0.0.1", port_of(url))
        head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4001\r\n\r\n"
        with socket.create_connection(address, 5) as first:
            first.sendall(head + b"x" * 4000)
            time.sleep(0.1)
            answer = ask(address[1], prompt="w1 " * 500)
            assert answer.status_code == 503 and "too many requests are being read" in said(answer)
            assert answer.headers["retry-after"] == "1"
        assert waits(lambda: ask(address[1], prompt="w1").status_code == 200)
        assert ask(address[1], prompt="w1 " * 60).status_code == 200


def test_two_lengths_of_one_body_end_the_connection(port):
    """A proxy may read the body by the other one; what follows is then no request."""
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
        "Content-Type: application/json\r\n"
    )
    both = ("Content-Length: 4\r\n", "Transfer-Encoding: chunked\r\n")
    for first, second in (both, reversed(both)):
        with socket.create_connection(("127.0.0.1", port), 5) as raw:
            request = f"{head}{first}{second}\r\n0\r\n\r\n"
            raw.sendall((request + "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").encode())
            answer = b""
            with suppress(ConnectionResetError):  # it ends with bytes that nobody reads
                while part := raw.recv(4096):
                    answer += part
        assert answer.startswith(b"HTTP/1.1 400 ") and answer.count(b"HTTP/1.1") == 1
        assert b"connection: close" in answer.lower() and b"both Content-Length" in answer


# -- requests ------------------------------------------------------------------------------------


def test_an_address_with_a_slash_too_many_leads_nowhere(port):
    assert httpx.post(f"http://127.0.0.1:{port}/v1/completions/").status_code == 401
    answer = ask(port, "/v1/completions/", prompt="w1")
    assert answer.status_code == 404 and "location" not in answer.headers


def test_a_temperature_too_cold_to_divide_by_is_greedy(port, offline):
    for temperature in (5e-324, 1e-40, 1e-4):
        answer = ask(port, prompt=QUESTIONS[0], temperature=temperature)
        assert answer.json()["choices"][0]["text"] == offline[QUESTIONS[0]]
    assert ask(port, prompt=QUESTIONS[0], temperature=1e-3, top_p=1e-300).status_code == 200
    warm = CompletionRequest(model="m", prompt="q", temperature=1e-3)
    assert warm.sampling == Sampling(1e-3)


def test_more_answers_than_the_queue_has_places_are_never_possible(port):
    """Such a request is not told to come back."""
    answer = ask(port, prompt=["w1"] * 17, n=16)
    assert answer.status_code == 400 and said(answer) == "at most 256 answers per request"


def test_a_question_without_tokens_is_empty(reasoner, port):
    inner = reasoner.tokenizer.backend_tokenizer
    inner.normalizer = normalizers.Replace("~", "")
    try:
        answer = ask(port, prompt=["w1", "~~"])
    finally:
        inner.normalizer = None
    assert answer.status_code == 400 and "no tokens" in said(answer)


def test_a_question_is_read_into_tokens_once(reasoner, port, monkeypatch):
    encode, seen = reasoner.encoder._encode, []
    monkeypatch.setattr(
        reasoner.encoder, "_encode", lambda texts: seen.append(texts) or encode(texts)
    )
    assert ask(port, prompt=QUESTIONS[:3], n=2).status_code == 200
    assert seen == [QUESTIONS[:3]]


def test_others_are_served_while_a_long_request_is_read_into_tokens(reasoner, port, monkeypatch):
    encode, may_end = reasoner.encoder._encode, threading.Event()

    def encode_slowly(texts):
        assert len(texts) == 1 or may_end.wait(10)
        return encode(texts)

    monkeypatch.setattr(reasoner.encoder, "_encode", encode_slowly)
    with ThreadPoolExecutor(1) as pool:
        long = pool.submit(ask, port, prompt=["w1 " * 60] * 200)
        try:
            assert ask(port, prompt="w1").status_code == 200 and not long.done()
        finally:
            may_end.set()
        assert len(long.result().json()["choices"]) == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", "0.5"), ("temperature", True), ("stream", "yes"), ("stream", 1), ("n", True),
     ("n", 1.0), ("stream_options", {"include_usage": 1}), ("frequency_penalty", False),
     ("logprobs", 0), ("prompt_", None)],
)  # fmt: skip
def test_wrong_types_are_not_read_as_right_ones(port, field, value):
    answer = ask(port, prompt="w1", **{field: value})
    assert answer.status_code == 400 and field in said(answer)


def test_a_long_list_of_wrong_parts_costs_a_short_list_of_errors():
    parts = {"role": "user", "content": [0] * 100_000}
    with pytest.raises(ValidationError) as raised:
        ChatRequest.model_validate({"model": "m", "messages": [parts]})
    assert raised.value.error_count() < 200
    wrong = {"model": "m", "prompt": [0] * 100_000, "stop": [0] * 100_000}
    with pytest.raises(ValidationError) as raised:
        CompletionRequest.model_validate(wrong)
    assert raised.value.error_count() < 600


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "a/json"]
)
def test_a_body_that_is_not_said_to_be_json(port, kind):
    headers = {"authorization": f"Bearer {KEY}", **({} if kind is None else {"content-type": kind})}
    body = b'{"model": "tiny", "prompt": "w1"}'
    answer = httpx.post(f"http://127.0.0.1:{port}/v1/completions", content=body, headers=headers)
    assert answer.status_code == 415 and "Content-Type: application/json" in said(answer)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_cannot_be_interrupted_does_not_keep_its_client(reasoner, monkeypatch, stream):
    think, may_end = reasoner.think_about, threading.Event()

    def slowly(*given):
        assert may_end.wait(20)
        return think(*given)

    monkeypatch.setattr(reasoner, "think_about", slowly)
    monkeypatch.setattr("kava.serve.service.GRACE_SECONDS", 0.2)
    limits = Limits(question_tokens=64, new_tokens=4, timeout=0.2)
    with serving(reasoner, limits) as (url, _):
        answer = ask(port_of(url), prompt="w1", stream=stream)
        may_end.set()
        assert answer.status_code == (200 if stream else 504)
        assert "the answer took too long" in answer.text


def test_a_failure_of_the_service_itself_is_an_error_like_others(reasoner, monkeypatch, caplog):
    with serving(reasoner) as (url, _):
        monkeypatch.setattr(logging.getLogger("uvicorn.error"), "handlers", [caplog.handler])
        with monkeypatch.context() as patch:
            patch.setattr(reasoner.encoder, "_encode", lambda _: 1 / 0)
            answer = ask(port_of(url), prompt="w1")
        assert answer.status_code == 500 and said(answer) == "the service failed on this request"
        assert waits(lambda: "ZeroDivisionError" in caplog.text)  # for whoever runs it
        assert ask(port_of(url), prompt="w1").status_code == 200


def test_the_schema_tells_this_services_limits(port, reasoner):
    headers = {"authorization": f"Bearer {KEY}"}
    told = httpx.get(f"http://127.0.0.1:{port}/openapi.json", headers=headers).json()
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(told)))
    assert (
        named <= set(told["components"]["schemas"])
        and {"ErrorBody", "ChatCompletionChunk"} <= named
    )
    request = told["components"]["schemas"]["CompletionRequest"]
    fields = request["properties"]
    assert request["additionalProperties"] is False
    assert fields["best_of"]["enum"] == [1, None] and "enum" not in fields["user"]
    assert fields["model"]["enum"] == ["tiny"] and fields["max_tokens"]["anyOf"][0]["maximum"] == 12
    operations = {
        (path, method): operation
        for path, methods in told["paths"].items()
        for method, operation in methods.items()
    }
    assert all("422" not in operation["responses"] for operation in operations.values())
    for (path, _), operation in operations.items():
        assert ("401" in operation["responses"]) == (path != "/health") == ("security" in operation)
    asked = operations["/v1/completions", "post"]["responses"]
    assert set(asked["200"]["content"]) == {"application/json", "text/event-stream"}
    with serving(tiny.reasoner("llama", "cot")) as (url, _):
        told = httpx.get(f"{url}/openapi.json").json()
    fields = told["components"]["schemas"]["ChatRequest"]["properties"]
    assert fields["num_iterations"] == {"type": "null"}
    assert "securitySchemes" not in told["components"]


def test_answers_are_as_described(port):
    """With no field more: schemathesis looks over those."""
    headers = {"authorization": f"Bearer {KEY}"}

    def get(path):
        return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers).text

    Completion.model_validate_json(ask(port, prompt=["w1", "w2"]).text)
    asked = [{"role": "user", "content": "w1"}]
    ChatCompletion.model_validate_json(ask(port, "/v1/chat/completions", messages=asked).text)
    ModelList.model_validate_json(get("/v1/models"))
    Model.model_validate_json(get("/v1/models/tiny"))
    Health.model_validate_json(get("/health"))
    ErrorBody.model_validate_json(get("/v1/models/other"))
    ErrorBody.model_validate_json(ask(port, prompt="w1", n=0).text)


@pytest.mark.parametrize("chat", [False, True])
def test_events_are_as_described(port, chat):
    asked = {"messages": [{"role": "user", "content": "w1"}]} if chat else {"prompt": ["w1", "w2"]}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    more = {"stream": True, "stream_options": {"include_usage": True}}
    events = ask(port, path, **asked, **more).text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunk = ChatCompletionChunk if chat else Completion
    *_, last = [chunk.model_validate_json(e.removeprefix("data: ")) for e in events[:-2]]
    assert last.choices == [] and last.usage.completion_tokens > 0


def test_clients_that_leave_leave_nothing_behind(reasoner, offline):
    """Neither connections nor tasks, and no jobs that wait."""
    with serving(reasoner, Limits(question_tokens=64, new_tokens=12)) as (url, server):
        there = Target("tiny", QUESTIONS)
        leavers = [a for a in (attack(i, there) for i in range(400)) if a.kind == "leave"]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda made: send(port_of(url), made)[0], leavers))
        assert len(found) > 9 and set(found) <= {LEFT, CLOSED}
        assert waits(lambda: connected(server) == 0 and not server.server_state.tasks)
        assert httpx.get(f"{url}/health").json()["waiting"] == 0
        assert (
            ask(port_of(url), prompt=QUESTIONS[0]).json()["choices"][0]["text"]
            == (offline[QUESTIONS[0]])
        )
