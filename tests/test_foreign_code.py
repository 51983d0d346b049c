"""Python files in a model's folder are never run, and nobody is asked whether to run them."""

import ast
import io
import json
import shutil
from pathlib import Path

import pytest
import yaml
from refusals import refused
from tiny import lora, recipe

import kava as package
from kava.backbones import pretrained
from kava.inference.pipeline import pipeline
from kava.reasoning.reasoner import Reasoner

ROOT = Path(__file__).resolve().parent.parent
AUTO_MAP = {"AutoConfig": "code.My", "AutoModelForCausalLM": "code.My"}
TOKENIZER_MAP = {"AutoTokenizer": [None, "code.My"]}
REFUSED = "backbones.remote-code"


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def arm(folder, config=None, tokenizer=None):
    """Put code into a folder that leaves a trace when it is run, and have its files ask for it."""
    ran = folder / "RAN"
    (folder / "code.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass My: pass\n")
    if config:
        edit(folder / "config.json", **config)
    if tokenizer:
        edit(folder / "tokenizer_config.json", **tokenizer)
    return folder


UNKNOWN = {"config": {"model_type": "mine", "architectures": ["My"], "auto_map": AUTO_MAP}}
KNOWN = {"config": {"auto_map": AUTO_MAP}, "tokenizer": {"auto_map": TOKENIZER_MAP}}
TOKENIZER = {"tokenizer": {"tokenizer_class": "My", "auto_map": TOKENIZER_MAP}}


@pytest.fixture(autouse=True)
def _consent(monkeypatch):
    """Whoever asks is told yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))


@pytest.fixture
def plain(backbone, tmp_path):
    """A backbone that may be changed."""
    return Path(shutil.copytree(backbone, tmp_path / "plain"))


@pytest.fixture
def run(plain, tmp_path):
    """A run folder with an adapter, whose kava.json names `plain` as its backbone."""
    reasoner = Reasoner.build(recipe("kava", **lora(), backbone=str(plain)))
    reasoner.save_pretrained(tmp_path / "run" / "checkpoint")
    return tmp_path / "run"


@pytest.fixture
def row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "1 + 1", "steps": ["1 + 1 = 2"], "answer": "2"}) + "\n")
    return file


@pytest.fixture
def written(plain, row, tmp_path):
    """A recipe on `plain`."""
    tree = {
        "method": "kava", "backbone": str(plain), "data": {"train": str(row)},
        "train": {"steps": 1, "batch_size": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def assert_refused(outcome, folder, file="config.json"):
    status, said = outcome
    assert status == 2 and "Traceback" not in said and "[y/N]" not in said
    assert (said.code, said.key) == (REFUSED, str(folder / file))
    last = said.strip().splitlines()[-1]
    assert last.startswith("kava: ") and f"{folder / file}: " in last
    assert not (folder / "RAN").exists()


# -- refused -------------------------------------------------------------------------------------

OF_A_MODEL = {
    "ask": ("ask", "--backbone", "MODEL"),
    "ask as a run": ("ask", "MODEL", "1 + 1"),
    "eval": ("eval", "MODEL", "--task", "rows", "--file", "ROW", "-o", "OUT"),
    "serve": ("serve", "MODEL", "--port", "1"),
    "demo": ("demo", "--written", "MODEL", "--port", "0"),
    "inspect": ("inspect", "MODEL", "1 + 1", "-o", "OUT/page.html"),
    "ablate": ("ablate", "MODEL", "--task", "rows", "--file", "ROW", "-o", "OUT"),
    "train": ("train", "RECIPE", "-o", "OUT"),
    "smoke": ("train", "RECIPE", "--smoke"),
    "bench train": ("bench", "train", "RECIPE"),
    "bench shape": ("bench", "train", "RECIPE", "--shape", "MODEL"),
    "bench generate": ("bench", "generate", "RECIPE"),
    "bench memory": ("bench", "memory", "RECIPE", "--device", "cpu"),
}
OF_A_RUN = {
    "ask": ("ask", "RUN"),
    "eval": ("eval", "RUN", "--task", "rows", "--file", "ROW"),
    "serve": ("serve", "RUN", "--port", "1"),
    "demo": ("demo", "RUN", "--port", "0"),
    "inspect": ("inspect", "RUN", "1 + 1"),
    "ablate": ("ablate", "RUN", "--task", "rows", "--file", "ROW"),
    "bench generate": ("bench", "generate", "RUN"),
}


@pytest.mark.parametrize("words", OF_A_MODEL.values(), ids=OF_A_MODEL)
def test_a_model_that_only_its_own_code_can_load(words, kava, plain, written, row, tmp_path):
    arm(plain, **UNKNOWN)
    places = {"MODEL": plain, "RECIPE": written, "ROW": row, "OUT": tmp_path / "out"}
    given = [places.get(word) or word.replace("OUT", str(places["OUT"])) for word in words]
    assert_refused(kava(*given), plain)


@pytest.mark.parametrize("words", [("recipes", "check"), ("sweep", "-o", "OUT")])
def test_of_several_recipes_it_fails_that_one(words, kava, plain, written, tmp_path):
    arm(plain, **UNKNOWN)
    given = [str(tmp_path / "out") if word == "OUT" else word for word in words]
    code, said = kava(*given, written)
    assert code == 1 and f"{plain / 'config.json'}: " in said and "auto_map" in said
    assert "Traceback" not in said and "[y/N]" not in said
    assert not (plain / "RAN").exists()


@pytest.mark.parametrize("words", OF_A_RUN.values(), ids=OF_A_RUN)
@pytest.mark.parametrize("part", ["backbone", "tokenizer"])
def test_a_run_that_brings_such_a_model_with_it(part, words, kava, plain, run, row):
    places = {"RUN": run, "ROW": row}
    given = [places.get(word, word) for word in words]
    if part == "backbone":
        arm(plain, **UNKNOWN)
        assert_refused(kava(*given), plain)
    else:
        arm(run / "checkpoint", **TOKENIZER)
        assert_refused(kava(*given), run / "checkpoint", "tokenizer_config.json")


def test_a_run_that_holds_such_a_model(kava, plain, tmp_path):
    reasoner = Reasoner.build(recipe("kava", backbone=str(plain)))
    reasoner.save_pretrained(tmp_path / "run" / "checkpoint")
    folder = arm(tmp_path / "run/checkpoint/backbone", **UNKNOWN)
    assert_refused(kava("ask", tmp_path / "run"), folder)


@pytest.mark.parametrize("words", [("ask", "--backbone"), ("bench", "memory", "--shape")])
def test_a_type_that_transformers_knows_without_a_language_model(words, kava, plain, written):
    arm(plain, config={"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "code.My"}})
    code, said = kava(*words[:2], *([written] if words[0] == "bench" else []), *words[2:], plain)
    assert code == 2 and "Traceback" not in said and "[y/N]" not in said
    assert not (plain / "RAN").exists()
    with refused(REFUSED, str(plain / "config.json")):
        pretrained.new_model(pretrained.load_config(plain))
    assert not (plain / "RAN").exists()


def test_from_python(plain, run):
    arm(plain, **UNKNOWN)
    for load in (
        lambda: Reasoner.from_pretrained(run),
        lambda: Reasoner.from_backbone(str(plain)),
        lambda: package.Reasoner.build(recipe("kava", backbone=str(plain))),
        lambda: pipeline(model=run),
        lambda: pipeline(model=str(plain)),
    ):
        with refused(REFUSED, str(plain / "config.json")):
            load()
    assert not (plain / "RAN").exists()


def test_from_the_harness(plain, run):
    pytest.importorskip("lm_eval", reason="lm_eval is not installed")
    from kava.lm_eval.model import KavaLM

    arm(plain, **UNKNOWN)
    with refused(REFUSED, str(plain / "config.json")):
        KavaLM(checkpoint=str(run))
    assert not (plain / "RAN").exists()


def test_code_of_another_repository_is_refused_as_well(kava, plain):
    told = {name: f"somebody/else--{code}" for name, code in AUTO_MAP.items()}
    arm(plain, config={"model_type": "mine", "auto_map": told})
    assert_refused(kava("ask", "--backbone", plain), plain)


# -- passed over ---------------------------------------------------------------------------------


def test_where_transformers_has_a_class_it_is_taken(kava, plain, run, written, row, tmp_path):
    arm(plain, **KNOWN)
    arm(run / "checkpoint", tokenizer={"auto_map": TOKENIZER_MAP})
    for words in (
        ("ask", "--backbone", plain, "1 + 1", "--max-new-tokens", 2),
        ("ask", run, "1 + 1", "--max-new-tokens", 2),
        ("inspect", run, "1 + 1", "--steps", "1 + 1 = 2", "--answer", "2"),
        ("eval", run, "--task", "rows", "--file", row),
        ("train", written, "-o", tmp_path / "out"),
        ("train", written, "--smoke"),
    ):
        code, said = kava(*words)
        assert code == 0 and "[y/N]" not in said, said
    assert not list(tmp_path.rglob("RAN"))


def test_the_questions_on_standard_input_are_questions(kava, plain, monkeypatch):
    """Loading takes none of them."""
    arm(plain, **KNOWN)
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n1 + 1\n"))
    asked = []
    monkeypatch.setattr(
        "kava.inspect.ask.answer_one", lambda reasoner, text, *rest: asked.append(text)
    )
    assert kava("ask", "--backbone", plain)[0] == 0
    assert asked == ["y", "1 + 1"]


# -- the source ----------------------------------------------------------------------------------


def loads(text):
    """Calls of transformers' loaders in Python source, and whether each runs no foreign code."""
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        owner = ast.unparse(node.func.value)
        if node.func.attr in ("from_pretrained", "from_config") and owner != "Reasoner":
            given = {one.arg: ast.unparse(one.value) for one in node.keywords}
            yield ast.unparse(node), given.get("trust_remote_code") == "False"


def test_every_loader_is_told_to_run_nothing():
    found = {}
    for folder in ("src", "benchmarks"):
        for file in (ROOT / folder).rglob("*.py"):
            text = file.read_text(encoding="utf-8")
            assert "transformers import pipeline" not in text, file
            found |= {(file.name, call): safe for call, safe in loads(text)}
    assert [where for where, safe in found.items() if not safe] == []
    benchmarks = {"compression.py", "vllm_beside.py"}
    assert {file for file, _ in found} == {"pretrained.py", "tokenizer.py", *benchmarks}
    assert len(found) == 7


def test_a_loader_that_is_not_told_so_is_seen():
    assert [safe for _, safe in loads("AutoConfig.from_pretrained(x)")] == [False]
    assert [safe for _, safe in loads("A.from_config(x, trust_remote_code=True)")] == [False]
    assert [safe for _, safe in loads("a.A.from_config(x, trust_remote_code=False)")] == [True]
    assert list(loads("Reasoner.from_pretrained(x)")) == []
