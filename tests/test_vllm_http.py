"""vLLM's HTTP server with the plugin, as users start it, asked with OpenAI's client."""

import math
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest
from vllm_here import CHECKPOINT

from kava import Reasoner
from kava.data.synthetic import generate
from kava.reasoning.export import export
from kava.types import ANSWER_PROMPT

openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.processes]
QUESTIONS = [example.question for example in generate("test", 200)]
EXTRA = {"model": "kava", "temperature": 0, "max_tokens": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(Reasoner.from_pretrained(CHECKPOINT), tmp_path_factory.mktemp("e") / "exported")


@pytest.fixture(scope="module")
def expected(folder):
    """Texts of the answers by kava itself, without the prompt, for each T."""
    reasoner = Reasoner.from_pretrained(folder)

    def texts(iterations):
        answers = reasoner.generate(QUESTIONS, 8, iterations)
        return [text.removeprefix(ANSWER_PROMPT) for text in answers]

    return {number: texts(number) for number in (None, 0, 1)}


@pytest.fixture(scope="module")
def client(folder, tmp_path_factory):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.txt"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", folder]
    command += ["--served-model-name", "kava", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--dtype", "float32", "--enforce-eager", "--trust-request-mm-kwargs"]
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
    environment.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # the engine is a process of its own
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        until = time.monotonic() + 300
        while not healthy(port):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(1)
        yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    finally:
        server.terminate()
        server.wait(60)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def complete(client, prompt, **options):
    return client.completions.create(**{**EXTRA, "prompt": prompt, **options})


def chat(client, *messages, **options):
    messages = [{"role": role, "content": content} for role, content in messages]
    return client.chat.completions.create(**{**EXTRA, "messages": messages, **options})


def iterating(number):
    return {"mm_processor_kwargs": {"num_iterations": number}}


def at_once(ask):
    with ThreadPoolExecutor(32) as pool:
        return list(pool.map(ask, QUESTIONS))


def test_texts_from_32_clients_are_those_of_kava(client, expected):
    found = at_once(lambda question: complete(client, question).choices[0].text)
    assert found == expected[None]


def test_chats_and_their_streams_are_those_of_kava(client, expected):
    def whole(question):
        return chat(client, ("user", question)).choices[0].message.content

    def streamed(question):
        chunks = chat(client, ("user", question), stream=True)
        return "".join(part.choices[0].delta.content or "" for part in chunks)

    assert at_once(whole) == at_once(streamed) == expected[None]


def test_each_request_has_its_own_number_of_iterations(client, expected):
    numbers = {question: place % 2 for place, question in enumerate(QUESTIONS)}
    found = at_once(
        lambda question: complete(client, question, extra_body=iterating(numbers[question]))
    )
    texts = [one.choices[0].text for one in found]
    assert texts == [expected[place % 2][place] for place in range(len(QUESTIONS))]


def test_a_request_can_ask_for_several_answers_and_logprobs(client, expected):
    found = complete(client, QUESTIONS[0], n=3, temperature=1.0, seed=1, logprobs=2)
    assert [one.index for one in found.choices] == [0, 1, 2]
    found = complete(client, QUESTIONS[0], logprobs=2).choices[0]
    assert found.text == expected[None][0]
    for token, value, top in zip(
        found.logprobs.tokens, found.logprobs.token_logprobs, found.logprobs.top_logprobs,
        strict=True,
    ):  # fmt: skip
        assert math.isfinite(value) and value == max(top.values()) == top[token]


@pytest.mark.parametrize(
    "ask",
    [
        lambda client: chat(client, ("system", "Be brief."), ("user", QUESTIONS[0])),
        lambda client: chat(client, ("user", "1"), ("assistant", "1"), ("user", "1")),
        lambda client: chat(client, ("user", [{"type": "image_url", "image_url": {"url": "x"}}])),
        lambda client: chat(client, ("user", " ")),
        lambda client: complete(client, ""),
        lambda client: complete(client, " "),
        lambda client: complete(client, "why? " * 400),
        lambda client: complete(client, [5] * 480),  # too long with the latents
        lambda client: complete(client, QUESTIONS[0], max_tokens=4000),
        lambda client: complete(client, [5, 421]),  # <bot>, which has no embedding
        lambda client: complete(client, QUESTIONS[0], extra_body=iterating(-1)),
        lambda client: complete(client, QUESTIONS[0], extra_body={"mm_processor_kwargs": {"a": 1}}),
    ],
    ids=[
        "system", "dialogue", "image", "blank-chat", "empty", "blank", "long", "long-with-latents",
        "tokens", "beyond", "iterations", "unknown-key",
    ],
)  # fmt: skip
def test_a_bad_request_gets_status_400_and_the_next_an_answer(client, expected, ask):
    with pytest.raises(openai.BadRequestError) as error:
        ask(client)
    assert len(error.value.message) < 500
    assert complete(client, QUESTIONS[0]).choices[0].text == expected[None][0]
