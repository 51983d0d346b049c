"""Checkpoints go to the Hub and come back, with a card that says what they are.

The Hub is a stand-in on this machine: real client code, real HTTP.
"""

import base64
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
import yaml
from refusals import refused
from tiny import lora, reasoner

from kava.data import rows_hash
from kava.reasoning import checkpoint
from kava.reasoning.model_card import card
from kava.reasoning.reasoner import Reasoner

ROOT = Path(__file__).parents[1]
COMMIT = "89abcdef0123456789abcdef0123456789abcdef"
NAME = "somebody/thinker"


class Store(BaseHTTPRequestHandler):
    """Model repositories below `root`; what is committed replaces what was there."""

    def __init__(self, root: Path, made: dict, *rest):
        self.root, self.made = root, made
        super().__init__(*rest)

    def log_message(self, *words):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        name = next((name for name in self.made if f"/{name}" in path), None)
        if name is None:
            return self.send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        folder, rest = self.root / name, path.partition(f"/{name}")[2]
        if rest.startswith("/resolve/"):
            file = folder / rest.split("/", 3)[3]
            if not file.is_file():
                return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
            return self.send(200, file.read_bytes(), {"ETag": f'"{etag(file)}"'})
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        listing = [
            {"type": "file", "path": f.relative_to(folder).as_posix(), "size": f.stat().st_size,
             "oid": etag(f)} for f in files
        ]  # fmt: skip
        if rest.startswith("/tree/"):
            return self.send(200, json.dumps(listing).encode())
        told = {"id": name, "sha": COMMIT, "private": self.made[name], "tags": [], "downloads": 0,
                "siblings": [{"rfilename": entry["path"]} for entry in listing]}  # fmt: skip
        return self.send(200, json.dumps(told).encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(urlsplit(self.path).path)
        if self.headers.get("Authorization") != "Bearer hf_right":
            return self.send(401, b'{"error": "Invalid credentials"}')
        if path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}" if told.get("organization") else NAME
            self.made[name] = told.get("private") or told.get("visibility") == "private"
            url = f"http://{self.headers['Host']}/{name}"
            return self.send(200, json.dumps({"url": url, "name": name}).encode())
        if path.endswith("/preupload/main"):
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for f in json.loads(body)["files"]]  # fmt: skip
            return self.send(200, json.dumps({"files": files}).encode())
        if "/commit/" in path:
            for line in body.decode().splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    file = self.root / NAME / part["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(part["value"]["content"]))
            told = {
                "commitOid": COMMIT,
                "commitUrl": f"http://{self.headers['Host']}/{NAME}/commit/{COMMIT}",
            }
            return self.send(200, json.dumps(told).encode())
        return self.send(200, b'{"valid": true, "warnings": [], "errors": []}')

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
def store(tmp_path):
    """Address, and the repositories that were made, with whether they are private."""
    made = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Store, tmp_path / "store", made))
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", made
    server.shutdown()
    server.server_close()


def run(code: str, address: str, folder: Path, token: str = "hf_right") -> str:
    """Python in a process of its own: the client reads its address once."""
    env = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    env |= {"HF_ENDPOINT": address, "HF_HOME": str(folder / "cache"), "HF_TOKEN": token}
    env |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, env=env,
        timeout=300,
    )  # fmt: skip
    return done.stdout + done.stderr


PUSH_AND_LOAD = """
from kava import Reasoner
from kava.errors import KavaError
from kava.reasoning.open import open_reasoner
there = Reasoner.from_pretrained("there")
print(there.push_to_hub("somebody/thinker", private=True))
back = Reasoner.from_pretrained("somebody/thinker")
asked = ["w1 w2 w3", "w4"]
assert back.generate(asked, 5) == there.generate(asked, 5)
assert open_reasoner("somebody/thinker").recipe.method == "kava"
assert back.record == there.record == {"steps": 3, "scores": {}}
try:
    Reasoner.from_pretrained("somebody/else")
except KavaError as error:
    print(error)
"""


@pytest.mark.processes
def test_there_and_back(store, tmp_path):
    address, made = store
    thinker = reasoner("llama", "kava")
    thinker.record = {"steps": 3, "scores": {}}
    thinker.save_pretrained(tmp_path / "there")
    said = run(PUSH_AND_LOAD, address, tmp_path)
    assert f"/commit/{COMMIT}" in said and "Traceback" not in said, said
    refused = next(x for x in said.splitlines() if x.startswith("checkpoint somebody/else: "))
    assert "hf auth login" in refused
    assert made == {NAME: True}
    stored = tmp_path / "store" / NAME
    assert (stored / "README.md").read_text("utf-8").startswith("---\nlibrary_name: kava\n")
    assert {f.name for f in stored.iterdir()} >= {"kava.json", "recipe.yaml", "kava.safetensors"}


@pytest.mark.processes
def test_a_token_that_may_not_write(store, tmp_path):
    address, made = store
    reasoner("llama", "kava").save_pretrained(tmp_path / "there")
    code = 'from kava import Reasoner; Reasoner.from_pretrained("there").push_to_hub("a/b")'
    said = run(code, address, tmp_path, token="hf_wrong")
    assert "KavaError: push to a/b: " in said.splitlines()[-1] and not made


def test_an_adapter_on_a_backbone_of_this_machine_is_merged_first(tmp_path):
    with refused("reasoning.local-backbone"):
        reasoner("llama", "kava", **lora()).push_to_hub("somebody/thinker")


# -- the card ------------------------------------------------------------------------------------

RECORD = {
    "steps": 1234, "train_seconds": 56.7, "trained_weights": 89_000, "command": "kava train x",
    "commit": "abc123", "time": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2.13.0"},
    "validation_accuracy": 61.5, "validation_n": 500,
    "data": {
        "train": {"source": "gsm8k_aug", "rows": 385_620, "revision": "r" * 40, "sha256": "5" * 64},
        "validation": {"source": "v.jsonl", "rows": 500, "revision": None, "sha256": "6" * 64},
    },
    "scores": {"gsm8k": {
        "version": 1, "split": "test", "accuracy": 56.5, "accuracy_se": 1.37, "n": 1319,
        "rule": "numeric", "accuracy_by_rule": {"numeric": 56.5, "string": 50.0},
        "forward_passes": 6.9,
    }},
}  # fmt: skip
IDENTITY = {
    "name": "meta-llama/Llama-3.2-1B-Instruct", "revision": "f" * 40, "model_type": "llama",
    "hidden_size": 2048, "num_layers": 16, "vocab_size": 128256, "fingerprint": "0" * 32,
}  # fmt: skip


def test_the_card_says_everything_that_was_recorded():
    thinker = reasoner(
        "llama", "kava", **lora(), data={"train": "gsm8k_aug", "validation": "v.jsonl"}
    )
    text = card(thinker.recipe, IDENTITY, RECORD)
    head = yaml.safe_load(text.split("---")[1])
    assert head["base_model"] == IDENTITY["name"] and "kava" in head["tags"]
    for told in (
        "at revision `" + "f" * 40, "LoRA r 4, alpha 32", "q_proj, k_proj, v_proj, o_proj",
        "385,620 of gsm8k_aug at revision `" + "r" * 40, "500 of v.jsonl, SHA-256",
        "| seed | 42 |", "1,234", "`kava train x`", "`abc123`", "torch 2.13.0",
        "| gsm8k (version 1, test) | 56.5 ± 1.37 | 1,319 | numeric | numeric 56.5, string 50.0 |",
        "61.5 % of 500", "What was not measured",
    ):  # fmt: skip
        assert told in text, told
    recipe = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert recipe["method"] == "kava" and recipe["lora"]["r"] == 4


def test_a_card_before_anything_was_measured():
    thinker = reasoner("llama", "codi")
    text = card(thinker.recipe, thinker.identity)
    assert "saved before the end of its training" in text and "No task was scored yet" in text
    assert "none: all weights were trained" in text and "base_model" not in text
    assert "a local folder: no revision" in text


def test_what_was_measured_stays_with_the_checkpoint(tmp_path):
    thinker = reasoner("llama", "kava")
    thinker.save_pretrained(tmp_path / "one")
    assert Reasoner.from_pretrained(tmp_path / "one").record is None
    checkpoint.add_results(tmp_path / "one", RECORD)
    loaded = Reasoner.from_pretrained(tmp_path / "one")
    assert loaded.record == RECORD
    loaded.save_pretrained(tmp_path / "two")
    for name in ("README.md", "kava.json", "recipe.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert "56.5 ± 1.37" in (tmp_path / "two" / "README.md").read_text("utf-8")


def test_a_hash_of_rows_sees_every_part():
    from dataclasses import replace

    from tiny import example

    row = example(3, 4)
    same = [rows_hash([row]), rows_hash([replace(row, id="other")])]
    assert same[0] == same[1]
    changed = [
        rows_hash([row, row]), rows_hash([replace(row, answer="8")]),
        rows_hash([replace(row, steps=())]), rows_hash([replace(row, question="w")]),
    ]  # fmt: skip
    assert len({same[0], *changed}) == 5
