"""The paper's recipe from a stand-in of the Hub on this machine: real client code, real HTTP.

The stand-in holds a tiny random Llama under the name of the paper's backbone, and generated rows
under that of its data set.
"""

import hashlib
import json
import os
import subprocess
import sys
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

import pytest

from kava.__main__ import main
from kava.backbones.tiny import tiny_backbone
from kava.data.synthetic import generate
from kava.system.hub import offline_mode
from kava.system.text import format_bytes

ROOT = Path(__file__).parents[1]
BACKBONE, ROWS = "meta-llama/Llama-3.2-1B-Instruct", "whynlp/gsm8k-aug"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Repository descriptions, listings and files below `root/models` and `root/datasets`."""

    def __init__(self, root: Path, gated: set, asked: list, *rest):
        self.root, self.gated, self.asked = root, gated, asked
        super().__init__(*rest)

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        self.answer()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        self.answer(body)

    def answer(self, body=""):
        path = unquote(urlsplit(self.path).path)
        self.asked.append(path)
        kind = "datasets" if path.startswith(("/datasets/", "/api/datasets/")) else "models"
        name = ROWS if kind == "datasets" else BACKBONE
        if name not in path:
            return self.send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if "/resolve/" in path and name in self.gated:
            return self.send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        folder = self.root / kind
        rest = path.partition(name)[2]
        if rest.startswith("/resolve/"):
            return self.file(folder / rest.split("/", 3)[3])
        listing = [
            {"type": "file", "path": f.relative_to(folder).as_posix(), "size": f.stat().st_size,
             "oid": etag(f)}
            for f in sorted(folder.rglob("*")) if f.is_file()
        ]  # fmt: skip
        if rest.startswith("/tree/"):
            return self.send(200, json.dumps(listing).encode())
        if rest.startswith("/paths-info/"):
            wanted = json.loads(body)["paths"] if body.startswith("{") else unquote(body)
            kept = [entry for entry in listing if entry["path"] in wanted]
            return self.send(200, json.dumps(kept).encode())
        siblings = [{"rfilename": entry["path"]} for entry in listing]
        told = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [],
                "downloads": 0, "gated": False, "disabled": False}  # fmt: skip
        return self.send(200, json.dumps(told).encode())

    def file(self, file: Path):
        if not file.is_file():
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self.send(200, file.read_bytes(), {"ETag": f'"{etag(file)}"'})

    def send(self, status, content, headers=None):
        self.send_response(status)
        for key, value in {"X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def etag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def server(tmp_path):
    """The stand-in, names that are gated, paths that were asked for."""
    root = tmp_path / "hub"
    (root / "datasets").mkdir(parents=True)
    tiny_backbone("llama", root / "models")
    for split, count in (("train", 64), ("validation", 16), ("test", 1319)):
        lines = (
            json.dumps({"question": e.question, "steps": list(e.steps), "answer": e.answer})
            for e in generate(split, count)
        )
        (root / "datasets" / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    gated, asked = set(), []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, root, gated, asked))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server, gated, asked
    stop(server)


def stop(server: ThreadingHTTPServer):
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(server):
    """Address, names that are gated, paths that were asked for."""
    server, gated, asked = server
    return f"http://127.0.0.1:{server.server_port}", gated, asked


def kava(address: str, folder: Path, *words: str, **more: str) -> subprocess.CompletedProcess:
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", **more}  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "kava", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, env=env, timeout=600,
    )  # fmt: skip


def train(address: str, folder: Path, **more: str) -> subprocess.CompletedProcess:
    short = ["train.epochs=null", "train.steps=2", "train.batch_size=4", "train.micro_batch_size=2",
             "train.precision=fp32", "data.train_rows=32", "data.validation_rows=4", "eval.every=2",
             "eval.max_new_tokens=4"]  # fmt: skip
    recipe = "recipes/llama1b_aug/kava.yaml"
    return kava(address, folder, "train", recipe, "seed=42", *short, "-o", folder / "run", **more)


@pytest.mark.processes
def test_the_papers_recipe_downloads_its_backbone_and_rows_and_trains(hub, tmp_path):
    address, _, asked = hub
    done = train(address, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "trained 2 steps" in done.stdout
    assert "of 32 training questions 0 equal one of the 1,319 of gsm8k_aug" in done.stdout
    assert any("model.safetensors" in path for path in asked)
    assert any("train.jsonl" in path for path in asked)
    described = json.loads((tmp_path / "run" / "checkpoint" / "kava.json").read_text())
    assert described["backbone"]["name"] == BACKBONE
    assert described["backbone"]["revision"] == COMMIT


@pytest.mark.processes
def test_a_gated_backbone_is_one_line_that_says_what_to_do(hub, tmp_path):
    address, gated, _ = hub
    gated.add(BACKBONE)
    done = train(address, tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]  # the download's bar stands before it
    assert BACKBONE in line and "hf auth login" in line
    assert not (tmp_path / "run").exists()


MISTYPED = {
    "ask": ["q"], "eval": ["--task", "synthetic"], "inspect": ["q"],
    "ablate": ["--task", "synthetic"], "serve": [], "demo": [],
}  # fmt: skip


@pytest.mark.parametrize("command", MISTYPED)
@pytest.mark.parametrize("run", ("runs/nothere", "runs/not/here"))
def test_a_mistyped_run_is_told_first_as_a_folder_that_is_not_here(
    command, run, kava, monkeypatch, tmp_path
):
    if command in ("serve", "demo"):
        pytest.importorskip({"serve": "fastapi", "demo": "gradio"}[command])
    monkeypatch.chdir(tmp_path)
    with offline_mode():
        status, said = kava(command, run, *MISTYPED[command])
    assert (status, said.code, said.key) == (2, "reasoning.not-had", run)
    (line,) = said.splitlines()
    assert not list(tmp_path.iterdir()) and "backbone=" not in line  # they have no such key
    first, _, as_a_name = line.partition(";")[0].partition(", ")
    assert first == f"kava: {run}: no such folder"
    assert ("Hub" in as_a_name) is (run == "runs/nothere")


FETCH = ["prefetch", "recipes/llama1b_aug/kava.yaml", "recipes/llama1b_aug/cot.yaml", "--set",
         "data.train_rows=32", "data.validation_rows=4"]  # fmt: skip


@pytest.mark.processes
def test_what_was_prefetched_is_enough_without_a_network(server, hub, tmp_path):
    address, _, asked = hub
    done = kava(address, tmp_path, *FETCH)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(": ")[0] for line in lines[:4]] == [
        f"{BACKBONE}, backbone", f"{ROWS}, split 'train'", f"{ROWS}, split 'validation'",
        f"{ROWS}, split 'test'",
    ]  # fmt: skip
    cache = tmp_path / "cache"
    (snapshot,) = cache.glob("hub/models--*/snapshots/*")
    size = sum(file.stat().st_size for file in snapshot.iterdir())
    assert lines[0].endswith(f"{format_bytes(size)} in {snapshot}")
    assert all(str(cache / "datasets") in line for line in lines[1:4])
    assert "2 repositories" in lines[4] and "HF_HUB_OFFLINE=1" in lines[4] and len(lines) == 5
    weights = [path for path in asked if path.endswith("model.safetensors")]
    assert len(set(weights)) == 1

    stop(server[0])
    done = train(address, tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stderr
    assert "trained 2 steps" in done.stdout
    assert "of 32 training questions 0 equal one of the 1,319 of gsm8k_aug" in done.stdout


@pytest.mark.processes
def test_a_prefetch_that_is_refused_says_what_to_do(hub, tmp_path):
    address, gated, _ = hub
    gated.add(BACKBONE)
    done = kava(address, tmp_path, *FETCH)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    line = done.stderr.strip().splitlines()[-1]
    assert BACKBONE in line and "hf auth login" in line


def test_nothing_is_fetched_for_what_lies_here(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["kava", "prefetch", "recipes/quickstart/[bk]*.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code and "nothing is needed from the Hub" in capsys.readouterr().out
