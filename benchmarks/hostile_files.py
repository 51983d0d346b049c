"""Files of others made to harm: each is refused, or held within limits, with its time and memory.

    OMP_NUM_THREADS=1 python benchmarks/hostile_files.py --output FILE

Each attack runs in a process of its own. `refused` is the code of the error; `held` means that the
attack did not happen. Fails if an attack succeeds, takes longer than a minute or needs more than
2 GiB. `make test` holds each one in the test that it names. `hostile.py` runs these too, after its
requests to the service.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from serving import about

from kava.backbones import loading
from kava.backbones.tiny import tiny_backbone
from kava.data.files import read_rows
from kava.errors import KavaError
from kava.evaluation import symbolic
from kava.evaluation.answers import math_verify
from kava.recipe.load import load_recipe
from kava.report.table import _escape_formula
from kava.serve.hosts import Hosts
from kava.system.files import write_json, write_whole

FILE = Path(__file__).resolve().parents[1] / "results" / "bench" / "hostile_files.json"
SECONDS, MEGABYTES = 60, 2048
Attack = Callable[[Path], str | None]  # what went wrong, or None if it was held
ATTACKS: dict[str, tuple[Attack, str]] = {}


def attack(name: str, test: str) -> Callable[[Attack], Attack]:
    """Register an attack, with the test that holds it: `file::test`."""

    def add(function: Attack) -> Attack:
        ATTACKS[name] = function, test
        return function

    return add


def edit(file: Path, **values: Any) -> None:
    """Change keys of a JSON file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _config(**values: Any) -> Attack:
    def run(folder: Path) -> str:
        tiny_backbone("llama", folder)
        edit(folder / "config.json", **values)
        loading.load_model(folder, torch.float32)
        return "the model was built"

    return run


_HEADERS = "test_hostile_models.py::test_a_config_is_compared_with_the_headers"
for _key, _value in (
    ("num_hidden_layers", 100_000), ("vocab_size", 10**9), ("hidden_size", 64 * 10**6),
    ("intermediate_size", 10**10),
):  # fmt: skip
    attack(f"config.json: {_key} {_value:,}", _HEADERS)(_config(**{_key: _value}))


def _pattern(pattern: str) -> Attack:
    def run(folder: Path) -> str:
        tiny_backbone("llama", folder)
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
                 "invert": False}  # fmt: skip
        edit(folder / "tokenizer.json", pre_tokenizer=split)
        loading.load_tokenizer(folder)
        return "the tokenizer was loaded"

    return run


for _regex in (r"(a+)+$", r"(\w|\w\w)+$"):
    attack(
        f"tokenizer.json: pattern {_regex}",
        "test_hostile_models.py::test_a_catastrophic_pattern_is_refused_when_it_is_loaded",
    )(_pattern(_regex))


@attack(
    "model.safetensors: header longer than its file",
    "test_hostile_models.py::test_a_header_that_is_longer_than_its_file",
)
def header(folder: Path) -> str:
    """A length of 72 petabytes."""
    tiny_backbone("llama", folder)
    (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    loading.load_model(folder, torch.float32)
    return "the model was loaded"


@attack("pytorch_model.bin: a pickle", "test_hostile_models.py::test_pickled_weights_are_not_read")
def pickled(folder: Path) -> str:
    """Only weights in a pickle."""
    tiny_backbone("llama", folder)
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    loading.load_model(folder, torch.float32)
    return "the model was loaded"


@attack("config.json: auto_map to Python", "test_foreign_code.py::OF_A_MODEL")
def remote_code(folder: Path) -> str | None:
    """A Python file that leaves a trace."""
    tiny_backbone("llama", folder)
    (folder / "code.py").write_text(f"open({str(folder / 'RAN')!r}, 'w').close()\nclass My: pass\n")
    names = {"AutoConfig": "code.My", "AutoModelForCausalLM": "code.My"}
    edit(folder / "config.json", model_type="mine", auto_map=names)
    try:
        loading.load_model(folder, torch.float32)
    finally:
        if (folder / "RAN").exists():
            os._exit(9)
    return "the model was loaded"


@attack(
    "recipe.yaml: aliases of aliases",
    "test_recipe.py::test_a_few_bytes_of_aliases_are_refused_at_once",
)
def aliases(folder: Path) -> str:
    """Nine lines for a billion values."""
    lines = ["a: &a [1,1,1,1,1,1,1,1,1]"]
    lines += [f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi")]  # noqa: B905
    (folder / "r.yaml").write_text("\n".join(lines))
    load_recipe(folder / "r.yaml")
    return "the recipe was read"


@attack("a link in a run's folder", "test_links.py::test_scores_are_not_written_through_a_link")
def link(folder: Path) -> str:
    """It leads to a file of the user."""
    (folder / "run").mkdir()
    (folder / "own").write_text("mine")
    (folder / "run" / "result.json").symlink_to(folder / "own")
    write_whole(folder / "run" / "result.json", "theirs", folder / "run")
    return "the link was followed"


@attack(
    "rows.parquet: 2 TB in 10 kB",
    "test_parquet.py::test_rows_that_refer_to_one_long_text_are_counted",
)
def parquet(folder: Path) -> str:
    """Each row refers to one text of a megabyte."""
    import pyarrow
    import pyarrow.parquet

    indices = pyarrow.array([0] * 2_000_000, "int32")
    texts = pyarrow.DictionaryArray.from_arrays(indices, ["x" * 1_000_000])
    table = pyarrow.table({"question": texts, "answer": pyarrow.array(["1"] * 2_000_000)})
    file = folder / "r.parquet"
    pyarrow.parquet.write_table(table, file, row_group_size=2_000_000, compression="zstd")
    for _ in read_rows(file):
        pass
    return "all rows were read"


@attack("an answer to score: 9^9^9^9", "test_answers.py::HOSTILE")
def tower(_: Path) -> str | None:
    """math-verify would compute it."""
    return "it counts as right" if math_verify("The answer is: $9^{9^{9^9}}$", "18") else None


@attack(
    "answers to score: an endless integral, 8 times",
    "test_answers.py::test_after_many_time_outs_no_more_are_judged",
)
def endless(_: Path) -> str | None:
    """Each takes its second, until they are too many: here 3, of 20 otherwise."""
    symbolic.TIME_OUTS = 3
    with symbolic.count_timeouts() as judged:
        for _i in range(8):
            math_verify(r"The answer is: $\int_0^1 \sin(x^x) \cos(\exp(x)) dx$", "18")
    return None if judged.skipped == 5 else f"judged: {judged}"


@attack(
    "a name in a table: =cmd|' /C calc'!A0", "test_results.py::test_a_spreadsheet_works_nothing_out"
)
def formula(_: Path) -> str | None:
    """A spreadsheet would run it."""
    return None if _escape_formula("=cmd|' /C calc'!A0").startswith("'") else "it is a formula"


@attack(
    "Host: a stranger's name for this machine (DNS rebinding)",
    "test_serve.py::test_a_name_that_is_not_this_machines_gets_nothing",
)
def rebinding(_: Path) -> str | None:
    """A request as a browser sends it for a page whose name was made to resolve to this machine."""
    strangers = (
        b"evil.example",
        b"evil.example:8000",
        b"localhost.evil.example",
        b"127.0.0.1.nip.io",
    )
    for name in strangers:
        if Hosts().host_error({"type": "http", "headers": [(b"host", name)]}) is None:
            return f"{name.decode()} is accepted"
    return None


def measure(function: Attack) -> dict[str, Any]:
    """Run an attack in a process of its own; what became of it, its seconds and megabytes."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_run, args=(function, theirs))
    begin = time.perf_counter()
    child.start()
    found = ours.recv() if ours.poll(SECONDS) else {"wrong": f"not done after {SECONDS} s"}
    found["seconds"] = round(time.perf_counter() - begin, 2)
    child.kill()
    child.join()
    return found


def _run(function: Attack, pipe: Any) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        try:
            wrong = function(Path(folder))
            found = {"outcome": "held"} if wrong is None else {"wrong": wrong}
        except KavaError as error:
            found = {"outcome": "refused", "code": error.code}
        except BaseException as error:
            found = {"wrong": f"{type(error).__name__}: {str(error)[:200]}"}
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    if used > MEGABYTES:
        found["wrong"] = f"{used:,} MB"
    pipe.send({**found, "mb": used})


def run(output: Path) -> list[str]:
    """Run every attack, print and write what became of each, and return those that succeeded."""
    found = {}
    for name, (function, test) in ATTACKS.items():
        found[name] = {**measure(function), "test": test}
        print(f"{name}: {found[name]}", flush=True)
    wrong = [name for name, one in found.items() if "wrong" in one]
    told = {"what": "hostile files: what became of each, with seconds and memory", "wrong": wrong}
    write_json(output, {**told, "attacks": found, **about("pyarrow", "math-verify")})
    return wrong


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=FILE)
    return 1 if run(parser.parse_args().output) else 0


if __name__ == "__main__":
    sys.exit(main())
