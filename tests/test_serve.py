"""The service answers over real HTTP as the model does offline, whoever else asks or leaves."""

import asyncio
import inspect
import json
import math
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import tiny
import torch
from refusals import refused

from kava.errors import KavaError

pytest.importorskip("fastapi", reason="kava[serve] is not installed")
import httpx
import openai
from pydantic import ValidationError
from rich.console import Console
from service import LIMITS, QUESTIONS, serving

from kava.quickstart import CHECKPOINT
from kava.serve.app import fit_limits
from kava.serve.batcher import Batcher, QueueFull
from kava.serve.command import Address, bind, check, is_loopback, listen, serve
from kava.serve.hosts import Hosts, check_names
from kava.serve.jobs import Job, Sampling
from kava.serve.limits import Limits
from kava.serve.protocol import ChatRequest, CompletionRequest, RequestError
from kava.serve.sampling import BatchSampler


@pytest.fixture(scope="module")
def reasoner():
    return tiny.reasoner("llama", "kava")


@pytest.fixture(scope="module")
def url(reasoner):
    with serving(reasoner) as (address, _):
        yield address


@pytest.fixture(scope="module")
def offline(reasoner):
    """What the model answers, one question at a time."""
    return {q: reasoner.answer(reasoner.think([q]), LIMITS.new_tokens)[0] for q in QUESTIONS}


def client(url, key="none", **more):
    plain = httpx.Client(verify=False)  # reading the certificates of the world takes 50 ms
    return openai.OpenAI(
        base_url=f"{url}/v1", api_key=key, max_retries=0, http_client=plain, **more
    )


def chat(url, question, **more):
    messages = [{"role": "user", "content": question}]
    with client(url) as openai_client:
        made = openai_client.chat.completions.create(model="tiny", messages=messages, **more)
        return list(made) if more.get("stream") else made


def post(url, body, path="/v1/completions", **more):
    return httpx.post(url + path, json=body, timeout=30, verify=False, **more)


def test_openais_client_gets_the_offline_answer(url, offline):
    answer = chat(url, QUESTIONS[0])
    expected = offline[QUESTIONS[0]]
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == ("stop" if expected.finished else "length")
    told = answer.usage.model_dump()
    assert told["forward_passes"] == expected.forward_passes
    assert told["completion_tokens"] == expected.generated_tokens and told["latents"] == 5
    assert told["prompt_tokens"] == 1 + 3 and told["total_tokens"] == 4 + expected.generated_tokens


def test_a_stream_is_the_same_text_in_pieces(url, offline):
    for question in QUESTIONS[:4]:
        parts = chat(url, question, stream=True, stream_options={"include_usage": True})
        *deltas, last = parts
        text = "".join(part.choices[0].delta.content or "" for part in deltas)
        assert text == offline[question].text
        assert (
            last.choices == []
            and last.usage.completion_tokens == offline[question].generated_tokens
        )
        assert [bool(part.choices[0].finish_reason) for part in deltas] == [False] * (
            len(deltas) - 1
        ) + [True]
    assert len(deltas) > 2


def test_completions_take_several_prompts_and_several_answers(url, offline):
    with client(url) as openai_client:
        made = openai_client.completions.create(model="tiny", prompt=QUESTIONS[:3], n=2)
    assert [choice.index for choice in made.choices] == list(range(6))
    expected = [offline[q] for q in QUESTIONS[:3] for _ in range(2)]
    assert [choice.text for choice in made.choices] == [one.text for one in expected]
    assert made.usage.prompt_tokens == sum(1 + 3 + i % 9 for i in range(3))
    assert made.usage.completion_tokens == sum(one.generated_tokens for one in expected)


def test_many_at_once_get_each_their_own(url, offline):
    """Greedy, sampled, with other iterations: batches form, and nothing is mixed up."""

    def ask(i):
        question = QUESTIONS[i % len(QUESTIONS)]
        return question, chat(url, question, stream=bool(i % 2)), i

    before = batches(url)
    with ThreadPoolExecutor(24) as pool:
        found = list(pool.map(ask, range(72)))
    for question, answer, i in found:
        if i % 2:
            text = "".join(part.choices[0].delta.content or "" for part in answer)
        else:
            text = answer.choices[0].message.content
        assert text == offline[question].text
    after = batches(url)
    assert after["questions"] - before["questions"] == 72
    assert after["batches"] - before["batches"] < 60


def batches(url):
    text = httpx.get(f"{url}/metrics").text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return {
        "batches": float(values["kava_batch_size_count"]),
        "questions": float(values["kava_batch_size_sum"]),
    }


def test_ways_of_asking_do_not_mix(url, reasoner):
    """What is asked in another way at the same moment is answered in that way."""
    question = QUESTIONS[5]
    by_t = {t: reasoner.answer(reasoner.think([question], t), 12)[0].text for t in (0, 1, 4)}
    assert len(set(by_t.values())) > 1
    seeded = [chat(url, question, temperature=1.5, seed=7).choices[0].message.content] * 2

    def ask(i):
        if i % 4 == 3:
            return chat(url, question, temperature=1.5, seed=7).choices[0].message.content
        more = {"extra_body": {"num_iterations": (0, 1, 4)[i % 4]}}
        return chat(url, question, **more).choices[0].message.content

    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(ask, range(32)))
    for i, text in enumerate(found):
        assert text == (seeded[0] if i % 4 == 3 else by_t[(0, 1, 4)[i % 4]])
    others = {
        chat(url, question, temperature=1.5, seed=s).choices[0].message.content for s in range(6)
    }
    assert len(others) > 1


def test_limits_of_an_answer(url, offline):
    long = next(q for q in QUESTIONS if offline[q].generated_tokens > 4)
    whole = offline[long].text
    cut = chat(url, long, max_tokens=2)
    assert cut.choices[0].finish_reason == "length" and cut.usage.completion_tokens == 2
    assert whole.startswith(cut.choices[0].message.content)
    stop = whole.split()[-2]
    for stream in (False, True):
        made = chat(url, long, stop=["nowhere", stop], stream=stream)
        if stream:
            made = "".join(part.choices[0].delta.content or "" for part in made)
        else:
            made = made.choices[0].message.content
        assert made == whole[: whole.index(stop)]


def test_a_stop_is_looked_for_in_what_the_model_writes(url, offline):
    """Not in the prompt that it is fed, nor where the two meet."""
    prompt = "The answer is:"
    for question in QUESTIONS[:4]:
        whole = offline[question].text
        assert whole.startswith(prompt) and ":" not in whole.removeprefix(prompt)
        written = whole.removeprefix(prompt)
        for stop in (":", "answer", f":{written[:2]}", [" ", ":"]):
            said = prompt + written.partition(" ")[0] if " " in stop and len(stop) == 2 else whole
            assert chat(url, question, stop=stop).choices[0].message.content == said
            parts = chat(url, question, stop=stop, stream=True)
            assert "".join(part.choices[0].delta.content or "" for part in parts) == said


SAMPLED = {"model": "tiny", "temperature": 1.5}


def texts(url, **more):
    answer = post(url, {**SAMPLED, **more}).json()
    return [choice["text"] for choice in answer["choices"]]


def test_several_answers_with_a_seed_are_several(url):
    found = texts(url, prompt=QUESTIONS[0], n=4, seed=7)
    assert len(set(found)) == 4
    assert texts(url, prompt=QUESTIONS[0], n=4, seed=7) == found
    assert texts(url, prompt=QUESTIONS[0], n=2, seed=7) == found[:2]
    assert texts(url, prompt=QUESTIONS[0], seed=7) == found[:1]
    assert not set(texts(url, prompt=QUESTIONS[0], n=4, seed=8)) & set(found)
    others = texts(url, prompt=QUESTIONS[1], n=2, seed=7)
    assert texts(url, prompt=QUESTIONS[:2], n=2, seed=7) == found[:2] + others
    negative = texts(url, prompt=QUESTIONS[0], n=2, seed=-(2**63))
    assert (
        len(set(negative)) == 2 and texts(url, prompt=QUESTIONS[0], seed=-(2**63)) == negative[:1]
    )


def test_a_seed_fixes_its_own_answer_and_nobody_elses(url):
    """Neither does it move what else in this process draws, nor is it moved."""
    own = texts(url, prompt=QUESTIONS[0], seed=7)
    others = []
    for _ in range(4):
        torch.manual_seed(0)
        others += texts(url, prompt=QUESTIONS[0])
        before = torch.get_rng_state()
        assert texts(url, prompt=QUESTIONS[0], seed=7) == own
        assert torch.equal(torch.get_rng_state(), before)
    assert len(set(others)) == 4
    stop = threading.Event()
    noise = threading.Thread(target=lambda: [torch.rand(9) for _ in iter(stop.is_set, True)])
    noise.start()
    try:
        assert [texts(url, prompt=QUESTIONS[0], seed=7) for _ in range(4)] == [own] * 4
    finally:
        stop.set()
        noise.join()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (2.0, 0.8), (1, 0.3)])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature, top_p):
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -torch.inf, 1.5])
    likely = [math.exp(x / temperature) for x in logits.tolist()]
    order = sorted(range(6), key=lambda i: -likely[i])
    kept, share = [], 0.0
    while share < top_p - 1e-9:  # the least number of tokens that hold the share
        kept.append(order[len(kept)])
        share = sum(likely[i] for i in kept) / sum(likely)
        if len(kept) == 5:
            break
    rows = 20_000
    draw = BatchSampler(
        [Sampling(temperature, top_p, seed=i) for i in range(100)], torch.device("cpu")
    )
    ids = torch.zeros(100, 1, dtype=torch.long)
    left = torch.cat([draw(ids, logits.expand(100, 6)) for _ in range(rows // 100)])
    assert ((left == 0).sum(1) == 1).all() and ((left == -torch.inf).sum(1) == 5).all()
    counts = left.argmax(1).bincount(minlength=6).tolist()
    for i, count in enumerate(counts):
        expected = likely[i] / sum(likely[k] for k in kept) if i in kept else 0.0
        width = 5 * math.sqrt(rows * expected * (1 - expected))
        assert abs(count - rows * expected) <= width


BAD = [
    (b"{", 400, "not valid JSON"),
    (b"[]", 400, "valid dictionary"),
    (b'{"model": "\xff"}', 400, "parsing the body"),
    (b"[" * 100_000, 400, ""),
    ({"prompt": "w1"}, 400, "model: Field required"),
    ({"model": "tiny"}, 400, "prompt: Field required"),
    ({"model": "other", "prompt": "w1"}, 404, "there is no model 'other'; this service has 'tiny'"),
    ({"model": "tiny", "prompt": ""}, 400, "the question is empty"),
    ({"model": "tiny", "prompt": []}, 400, "prompt"),
    ({"model": "tiny", "prompt": [1, 2]}, 400, "in lm-eval, set tokenized_requests=False"),
    ({"model": "tiny", "prompt": {}}, 400, "prompt: must be a text or a list"),
    (b'{"model": "tiny", "prompt": "\\ud800"}', 400, "invalid characters"),
    (b'{"model": "tiny", "prompt": "w1", "temperature": NaN}', 400, "temperature"),
    ({"model": "tiny", "prompt": "w1", "temperature": -1}, 400, "temperature"),
    ({"model": "tiny", "prompt": "w1", "max_tokens": 0}, 400, "max_tokens"),
    ({"model": "tiny", "prompt": "w1", "max_tokens": 13}, 400, "at most 12 new tokens"),
    ({"model": "tiny", "prompt": "w1", "n": 10**9}, 400, "n: "),
    ({"model": "tiny", "prompt": "w1", "stop": ["a"] * 9}, 400, "stop: List should have at most 4"),
    ({"model": "tiny", "prompt": "w1", "stop": ""}, 400, "stop.0: String should have at least 1"),
    ({"model": "tiny", "prompt": "w1", "num_iterations": 10**6}, 400, "at most 4 latent"),
    ({"model": "tiny", "prompt": "w1", "tools": [{}]}, 400, "'tools' is not supported"),
    ({"model": "tiny", "prompt": "w1", "promt": "w2"}, 400, "'promt' is not a field"),
    ({"model": "tiny", "prompt": "w1 " * 65}, 400, "has 66 tokens; the limit is 64"),
    ({"model": "tiny", "prompt": "w" * 5000}, 400, "has 5,000 characters; the limit is 64 tokens"),
]


@pytest.mark.parametrize(("body", "status", "said"), BAD, ids=range(len(BAD)))
def test_bad_requests_get_one_clear_error(url, body, status, said):
    if isinstance(body, dict):
        answer = post(url, body)
    else:
        headers = {"content-type": "application/json"}
        answer = httpx.post(f"{url}/v1/completions", content=body, headers=headers)
    error = answer.json()["error"]
    assert answer.status_code == status and said in error["message"], answer.text
    assert "Traceback" not in answer.text and len(answer.text) < 1000
    assert post(url, {"model": "tiny", "prompt": "w1", "max_tokens": 1}).status_code == 200


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([{"role": "system", "content": "w1"}], "exactly one message"),
        ([{"role": "user", "content": "w1"}] * 2, "exactly one message"),
        (
            [{"role": "user", "content": [{"type": "image_url"}]}],
            ".content.0.type: Input should be",
        ),
        ([{"role": "user", "content": None}], "messages.0.content: must be a text or a list"),
        ([], "messages"),
    ],
)
def test_conversations_are_refused(url, messages, said):
    answer = post(url, {"model": "tiny", "messages": messages}, "/v1/chat/completions")
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]


def test_what_asks_for_nothing_is_accepted(url, offline):
    more = {"user": "x", "frequency_penalty": 0, "logprobs": False, "tools": None}
    text = [{"type": "text", "text": QUESTIONS[1]}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **more}
    answer = post(url, body, "/v1/chat/completions").json()
    assert answer["choices"][0]["message"]["content"] == offline[QUESTIONS[1]].text


@pytest.mark.parametrize(
    ("create", "request_of"),
    [
        (openai.resources.chat.Completions.create, ChatRequest),
        (openai.resources.Completions.create, CompletionRequest),
    ],
)
def test_every_field_of_openais_client_is_known(create, request_of):
    own = {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    sane = {"model": "m", "messages": [{"role": "user", "content": "w"}], "prompt": "w"}
    sane = {name: value for name, value in sane.items() if name in request_of.model_fields}
    for field in set(inspect.signature(create).parameters) - own:
        try:
            request_of.model_validate({**sane, field: {"x": 1}}).check()
        except RequestError as refused:
            assert "is not supported by this model" in str(refused)
        except ValidationError as invalid:
            assert invalid.errors()[0]["loc"][0] == field


def test_models_health_and_unknown_addresses(url):
    with client(url) as openai_client:
        assert [model.id for model in openai_client.models.list()] == ["tiny"]
        assert openai_client.models.retrieve("tiny").id == "tiny"
        with pytest.raises(openai.NotFoundError, match="no model"):
            openai_client.models.retrieve("nothing")
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    for path in ("/", "/v1/nothing", "/docs"):
        answer = httpx.get(url + path)
        assert answer.status_code == 404 and answer.json()["error"]["message"] == "Not Found"
    assert httpx.get(f"{url}/v1/completions").status_code == 405


STRANGE = (
    "evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example",
    "127.0.0.2", "0.0.0.0", "[::2]:8000", "[::1", "::1", "[localhost]", "evil@localhost",
    "http://localhost", "localhost, evil.example", "",
)  # fmt: skip
OURS = (
    "localhost", "LocalHost:1", "localhost.", "127.0.0.1", "127.0.0.1:8000", "[::1]", "[::1]:8000",
    "[0:0:0:0:0:0:0:1]:8000",
)  # fmt: skip


def test_a_name_that_is_not_this_machines_gets_nothing(reasoner):
    """A web page whose name was made to resolve to this machine (DNS rebinding) sends its name."""
    with serving(reasoner, api_key="secret") as (url, _):
        key = {"authorization": "Bearer secret"}
        body = {"model": "tiny", "prompt": "w1", "max_tokens": 1, "stream": True}
        upgrade = {
            "connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13",
            "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
        }  # fmt: skip
        asked = [
            ("GET", path, {}) for path in ("/health", "/metrics", "/openapi.json", "/v1/models")
        ]
        asked += [("GET", "/docs", {}), ("GET", "/", {"headers": upgrade}), ("HEAD", "/health", {})]
        asked += [("POST", "/v1/completions", {"json": body}), ("OPTIONS", "/v1/completions", {})]

        def ask(host, method, path, more):
            headers = {**more.get("headers", {}), **key, "host": host}
            return httpx.request(method, url + path, **{**more, "headers": headers})

        for host in STRANGE:
            for method, path, more in asked:
                answer = ask(host, method, path, more)
                assert answer.status_code == 400, (host, method, path)
                if host and method != "HEAD":
                    said = answer.json()["error"]["message"]
                    assert said.startswith(f"the Host header is {host!r}, which is not a name of ")
                    assert "--allow-host" in said and "\n" not in said
        assert (
            'kava_requests_total{route="/health",status="400"}'
            in ask("localhost", "GET", "/metrics", {}).text
        )  # they are counted
        wanted = [200, 200, 200, 200, 404, 404, 200, 200, 405]
        for host in OURS:
            assert [ask(host, *one).status_code for one in asked] == wanted
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5) as raw:
            raw.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 400 ")


def taken(hosts, *given):
    return hosts.host_error({"headers": [(b"host", one.encode()) for one in given]}) is None


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "0", ""])
def test_on_every_address_any_address_is_ours_and_of_names_those_that_are_given(host):
    with bind("serve", host, 0) as bound:
        hosts = Hosts(host, ["Demo.example.org", "[fe80::1]"], bound.getsockname()[0])
    for name in (*OURS, "0.0.0.0", "10.0.0.7:8000", "[2001:db8::7]", "demo.example.org:8000"):
        assert taken(hosts, name)
    assert taken(hosts, socket.gethostname())
    for name in ("evil.example", "x.demo.example.org", "demo.example.org.evil", "[demo]", "[]", ""):
        assert not taken(hosts, name)
    assert not taken(hosts) and not taken(hosts, "localhost", "evil.example")


def test_on_one_address_only_that_one_is_ours():
    for host, name in (
        ("10.0.0.7", "10.0.0.7:80"),
        ("[::1]", "[::1]:80"),
        ("fe80::1", "[FE80::1]"),
    ):
        assert taken(Hosts(host), name) and taken(Hosts(host), "localhost")
        assert not taken(Hosts(host), "10.0.0.8") and not taken(Hosts(host), "evil.example")
    assert taken(Hosts("node7", bound="10.0.0.7"), "node7:80")
    assert taken(Hosts("node7", bound="10.0.0.7"), "10.0.0.7")
    assert taken(Hosts(allowed_hosts=["::2"]), "[::2]:80") and not taken(Hosts(), "[::2]:80")


@pytest.mark.parametrize(
    "name", ["", "*", "*.example.org", "http://x", "x:80", "[::1]:80", "a/b", "a b", "ü.de", "[x]"]
)
def test_a_name_that_no_host_header_can_have_is_refused(name):
    with refused("serve.not-a-host", name):
        check(Address(allow_hosts=[name]))
    check_names("serve", ["demo.example.org", "node_7", "10.0.0.7", "::1", "[::1]", "xn--tda.de"])


def test_the_command_hands_its_names_to_the_service(kava, monkeypatch):
    def ending(reasoner, name, limits, api_key, hosts):
        found = ",".join(sorted(hosts.names))
        raise KavaError("here", code=f"serve.any-{hosts.any_address}", key=found)

    monkeypatch.setattr("kava.serve.app.create_app", ending)
    with bind("serve", "127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    words = ("--port", port, "--allow-host", "a.example", "--allow-host", "B.example")
    status, said = kava("serve", CHECKPOINT, *words)
    wanted = "127.0.0.1,::1,a.example,b.example,localhost"
    assert (status, said.code, said.key) == (2, "serve.any-False", wanted)


def test_head_is_get_without_a_body(url):
    for path in ("/health", "/v1/models", "/v1/models/tiny", "/v1/models/other", "/openapi.json"):
        got, head = httpx.get(url + path), httpx.head(url + path)
        assert head.status_code == got.status_code and head.content == b""
        told = ("content-type", "content-length")
        assert [head.headers[name] for name in told] == [got.headers[name] for name in told]
    assert httpx.head(f"{url}/metrics").status_code == 200
    assert httpx.head(f"{url}/v1/completions").status_code == 405


def test_bodies_that_are_too_large_or_too_slow(reasoner):
    limits = Limits(question_tokens=64, new_tokens=4, body_bytes=2000, timeout=0.5)
    with serving(reasoner, limits) as (url, _):
        assert post(url, {"model": "tiny", "prompt": "w" * 3000}).status_code == 413
        parts = (b"x" * 500 for _ in range(10))  # chunked: no length is told
        answer = httpx.post(f"{url}/v1/completions", content=parts)
        assert answer.status_code == 413 and "2,000 bytes" in answer.json()["error"]["message"]

        # A length that is too large is refused before anything of the body is sent.
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 5) as raw:
            head = (
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3000\r\n\r\n"
            )
            raw.sendall(head.encode())
            raw.settimeout(0.3)  # less than the limit's half second for a body to arrive
            assert raw.recv(100).startswith(b"HTTP/1.1 413 ")

        def slowly():
            yield b'{"model": '
            time.sleep(1)
            yield b'"tiny"}'

        assert httpx.post(f"{url}/v1/completions", content=slowly()).status_code == 408


def test_a_full_queue_says_when_to_come_back(reasoner, offline):
    limits = Limits(question_tokens=64, new_tokens=12, batch_size=1, queue_length=2, timeout=30.0)
    with serving(reasoner, limits) as (url, _), ThreadPoolExecutor(16) as pool:
        bodies = [{"model": "tiny", "prompt": QUESTIONS[i]} for i in range(16)]
        found = list(pool.map(lambda body: post(url, body), bodies))
        assert {answer.status_code for answer in found} == {200, 429}
        for body, answer in zip(bodies, found, strict=True):
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1
                assert answer.json()["error"]["type"] == "rate_limit_error"
            else:
                assert answer.json()["choices"][0]["text"] == offline[body["prompt"]].text


@pytest.fixture
def endless(reasoner, monkeypatch):
    """The model without an end of answers, and slow: 20 ms a token."""
    read = type(reasoner).logits

    def answer(reasoning, max_new_tokens, stopping_criteria, **options):
        class Slow(type(stopping_criteria[0])):
            def __call__(self, *args, **more):
                time.sleep(0.02)
                return super().__call__(*args, **more)

        stopping_criteria[0].__class__ = Slow
        return original(
            reasoning, max_new_tokens, stopping_criteria=stopping_criteria,
            suppress_tokens=[reasoner.tokenizer.eos_token_id], **options,
        )  # fmt: skip

    original = reasoner.continue_from
    monkeypatch.setattr(reasoner, "continue_from", answer)
    assert read is type(reasoner).logits
    return reasoner


LONG = Limits(question_tokens=64, new_tokens=100, timeout=30.0, delay=0.0)


def reasons(url):
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    found = [line for line in lines if line.startswith("kava_answers_total")]
    return {line.split('"')[1]: float(line.rsplit(" ", 1)[1]) for line in found}


def test_an_answer_that_takes_too_long(endless):
    limits = Limits(question_tokens=64, new_tokens=100, timeout=0.4, delay=0.0)
    with serving(endless, limits) as (url, _):
        begin = time.monotonic()
        answer = post(url, {"model": "tiny", "prompt": "w1"})
        assert answer.status_code == 504 and "too long" in answer.json()["error"]["message"]
        assert time.monotonic() - begin < 1.5  # a hundred tokens would take two seconds
        assert reasons(url) == {"timeout": 1.0}


def test_an_answer_that_ends_in_the_queue_is_counted_too(endless):
    limits = Limits(question_tokens=64, new_tokens=100, delay=0.0, batch_size=1)
    with serving(endless, limits) as (url, _), ThreadPoolExecutor(1) as pool:
        before = pool.submit(post, url, {"model": "tiny", "prompt": "w1", "max_tokens": 30})
        time.sleep(0.2)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "w2"}, timeout=0.1)
        assert before.result().status_code == 200
        for _ in range(100):
            if len(reasons(url)) == 2:
                break
            time.sleep(0.02)
        assert reasons(url) == {"length": 1.0, "cancelled": 1.0}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place(endless, stream):
    with serving(endless, LONG) as (url, _):

        async def leave():
            body = {"model": "tiny", "prompt": "w1", "stream": stream}
            async with httpx.AsyncClient() as http:
                with pytest.raises(httpx.ReadTimeout):
                    async with http.stream(
                        "POST", f"{url}/v1/completions", json=body, timeout=0.3
                    ) as answer:
                        async for _ in answer.aiter_text():
                            if stream:
                                raise httpx.ReadTimeout("enough")

        asyncio.run(leave())
        for _ in range(100):
            if reasons(url):
                break
            time.sleep(0.02)
        assert reasons(url) == {"cancelled": 1.0}
        tokens = [x for x in httpx.get(f"{url}/metrics").text.splitlines() if "tokens_total" in x]
        assert tokens[-1].endswith(" 0.0")


def test_a_stop_finishes_what_was_accepted(endless):
    with serving(endless, LONG) as (url, server), ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(post, url, {"model": "tiny", "prompt": "w1"}) for _ in range(2)]
        time.sleep(0.5)
        threads = [t for t in threading.enumerate() if t.name == "kava-batcher"]
        server.should_exit = True
        for answer in answers:
            body = answer.result().json()
            assert body["usage"]["completion_tokens"] == 100
    assert any(not thread.is_alive() for thread in threads)  # this service's own has ended


def test_a_batch_that_fails_is_logged_and_does_not_end_the_service(reasoner, monkeypatch, caplog):
    with serving(reasoner) as (url, _):
        with monkeypatch.context() as patch:
            patch.setattr(type(reasoner), "think_about", lambda *_: 1 / 0)
            answer = post(url, {"model": "tiny", "prompt": "w1"})
            assert answer.status_code == 500
            assert "ZeroDivision" not in answer.text and "Traceback" not in answer.text
            assert "a batch of 1 failed" in caplog.text and "ZeroDivisionError" in caplog.text
            assert reasons(url) == {"error": 1.0}
        assert post(url, {"model": "tiny", "prompt": "w1"}).status_code == 200


def test_the_key_is_asked_for_everywhere_but_for_health(reasoner):
    with serving(reasoner, api_key="secret-1") as (url, _):
        assert httpx.get(f"{url}/health").status_code == 200
        assert httpx.head(f"{url}/health").status_code == 200
        assert httpx.head(f"{url}/v1/models").status_code == 401
        for path in ("/v1/models", "/metrics", "/v1/nothing", "/openapi.json"):
            for headers in (
                {},
                {"authorization": "Bearer secret-2"},
                {"authorization": "secret-1"},
            ):
                assert httpx.get(url + path, headers=headers).status_code == 401
        with client(url, "secret-1") as right, client(url, "wrong") as wrong:
            assert [model.id for model in right.models.list()] == ["tiny"]
            with pytest.raises(openai.AuthenticationError):
                wrong.models.list()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_this_machine_needs_no_key(host):
    assert is_loopback(host)
    check(Address(host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "localhost.evil.org"])
def test_other_addresses_need_a_key(host):
    with refused("serve.no-key", "--api-key"):
        check(Address(host))
    check(Address(host, api_key="x"))
    check(Address(host, allow_no_key=True))


@pytest.mark.parametrize("key", ["", "  ", "é", "a\nb"])
def test_a_key_that_cannot_be_sent(key):
    with refused("serve.unfit-key", "--api-key"):
        check(Address(api_key=key))


SECRETS = {
    "serve": ("--api-key", "KAVA_API_KEY", "api_key"),
    "demo": ("--password", "KAVA_DEMO_PASSWORD", "password"),
}


@pytest.mark.parametrize("command", SECRETS)
def test_a_secret_is_read_from_a_file(command, kava, monkeypatch, tmp_path):
    pytest.importorskip("gradio")
    option, variable, name = SECRETS[command]
    found = []
    for place in ("serve", "demo"):
        monkeypatch.setattr(
            f"kava.{place}.command.serve",
            lambda *words: found.extend(getattr(w, name) for w in words if hasattr(w, name)),
        )
    monkeypatch.delenv(variable, raising=False)
    file = tmp_path / "secret"
    for content in ("s3 cret", "s3 cret\n", "s3 cret\r\nmore\n"):
        file.write_bytes(content.encode())
        assert kava(command, "run", f"{option}-file", file) == (0, "")
    assert found == ["s3 cret"] * 3
    for wrong in (tmp_path / "none", tmp_path):
        status, said = kava(command, "run", f"{option}-file", wrong)
        assert (status, said.code, said.key) == (2, "cli.secret-not-read", f"{option}-file")
    file.write_bytes(b"\xff")
    status, said = kava(command, "run", f"{option}-file", file)
    assert (status, said.code) == (2, "cli.secret-not-read")
    again = kava(command, "run", f"{option}-file", file, option, "x")
    monkeypatch.setenv(variable, "x")
    for status, said in (again, kava(command, "run", f"{option}-file", file)):
        assert (status, said.code, said.key) == (2, "cli.secret-twice", f"{option}-file")
    assert kava(command, "run") == (0, "") and found[3:] == ["x"]


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(capsys):
    with bind("serve", "127.0.0.1", 0) as taken:
        taken.listen()
        address = Address(port=taken.getsockname()[1])
        with refused("serve.address-in-use", f"127.0.0.1:{address.port}"):
            serve("no/such/run", address, Limits(), None, None, Console())
    assert capsys.readouterr() == ("", "")


def test_of_two_on_one_port_at_once_the_second_is_told():
    """Both have bound it before either listens: each was loading its model."""
    with bind("serve", "127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with bind("demo", "127.0.0.1", port) as second:
            listen("serve", first)
            with refused("serve.address-in-use", f"127.0.0.1:{port}") as told:
                listen("demo", second)
            assert str(told.value).startswith("demo: ")


def test_questions_fit_the_positions_of_the_backbone(reasoner):
    assert fit_limits(reasoner, Limits(new_tokens=100)).question_tokens == 256 - 7 - 4 - 100
    with refused("reasoning.no-room-for-question", "--max-new-tokens") as told:
        fit_limits(reasoner, Limits(new_tokens=250))
    assert " 256 positions" in str(told.value)


def test_methods_without_latents_are_served_too():
    with serving(tiny.reasoner("llama", "cot"), LIMITS) as (url, _):
        usage = chat(url, QUESTIONS[0]).usage.model_dump()
        assert usage["latents"] == 0 and usage["forward_passes"] == usage["completion_tokens"]
        answer = post(url, {"model": "tiny", "prompt": "w1", "num_iterations": 1})
        assert answer.status_code == 400 and "does not iterate" in answer.text


def test_the_queue_takes_all_jobs_of_a_request_or_none(reasoner):
    batcher = Batcher(reasoner, queue_length=3)
    try:
        with pytest.raises(QueueFull) as full:
            batcher.submit([Job([1, 40], lambda _: None) for _ in range(4)])
        assert batcher.waiting == 0 and full.value.code == "serve.queue-full"
    finally:
        batcher.close()
    with refused("serve.stopping"):
        batcher.submit([Job([1, 40], lambda _: None)])


def test_openapi_describes_the_requests(url):
    told = httpx.get(f"{url}/openapi.json").json()
    assert set(told["paths"]) == {
        "/v1/chat/completions", "/v1/completions", "/v1/models", "/v1/models/{model}", "/health",
        "/metrics",
    }  # fmt: skip
    assert "prompt" in json.dumps(told["components"]["schemas"]["CompletionRequest"])
