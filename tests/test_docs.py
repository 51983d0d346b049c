"""The documentation tells the truth: blocks run, generated pages are current, the site builds."""

import ast
import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import typer
import yaml
from refusals import refused

import kava
from kava.__main__ import main
from kava.cli import app
from kava.reasoning.model_card import card
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.recipe.load import load_recipe
from kava.recipe.schema import BackboneRecipe, Recipe, dump
from kava.system.assets import find_all
from tools import keys as key_meanings
from tools import readme, reference

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="part of a checkout only")


def read(file):
    return (ROOT / file).read_text(encoding="utf-8")


# -- blocks --------------------------------------------------------------------------------------

#: Comments right above a block, in the source of a page:
#: `not run: WHY`      the block cannot run here;
#: `test adds: WORDS`  the test gives each command of the block these words too, for speed;
#: `varies: WHY`       what is printed differs between machines, so that it is not compared.
NOTE = re.compile(r"<!-- (not run|test adds|varies): (.+?) -->")
FENCE = re.compile(r"```(?P<kind>\w*)(?: title=\"(?P<title>[^\"]+)\")?$")


@dataclass
class Block:
    """A fenced block: `kind` is its language, `title` the file that it stands for."""

    kind: str
    title: str | None
    text: str
    notes: dict[str, str]


def blocks(text):
    found, notes, opened = [], {}, None
    for line in text.splitlines():
        if opened and line == "```":
            found.append(opened)
            notes, opened = {}, None
        elif opened:
            opened.text += line + "\n"
        elif fence := FENCE.match(line):
            opened = Block(fence["kind"], fence["title"], "", notes)
        elif note := NOTE.match(line):
            notes[note[1]] = note[2]
        else:
            notes = {}
    return found


def commands(block, start=""):
    """The lines of a block that begin with `start`, as words; comments are left out."""
    lines = block.text.replace("\\\n", " ").splitlines()
    lexed = [shlex.split(line, comments=True) for line in lines if line.startswith(start)]
    return [words for words in lexed if words]


PAGES = sorted(
    file.relative_to(ROOT).as_posix() for file in DOCS.rglob("*.md") if blocks(read(file))
)
RUNNABLE = {"python", "bash"}


class Reader:
    """Somebody who follows a page in an empty folder, block by block."""

    def __init__(self, monkeypatch, capsys):
        self.monkeypatch, self.capsys = monkeypatch, capsys
        self.space, self.said = {"__name__": "__main__"}, None

    def follow(self, block):
        if block.kind == "text":
            if self.said is not None and "varies" not in block.notes:
                expect(block.text, self.said)
            return
        self.said = None
        if block.title:
            self.save(block)
        elif "not run" in block.notes:
            return
        elif block.kind == "bash":
            self.said = "".join(map(self.call, self.with_added(block)))
        elif block.kind == "python":
            exec(compile(block.text, "<page>", "exec"), self.space)
            self.said = self.capsys.readouterr().out

    def save(self, block):
        """A file of the reader's; one in the package is found by its registry."""
        file = Path(block.title)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        if file.parts[:2] == ("src", "kava"):
            package = importlib.import_module(".".join(file.parts[1:-1]))
            places = [*package.__path__, str(file.parent.resolve())]
            self.monkeypatch.setattr(package, "__path__", places)

    def with_added(self, block):
        return [words + shlex.split(block.notes.get("test adds", "")) for words in commands(block)]

    def call(self, words):
        program, *arguments = words
        self.monkeypatch.setattr(sys, "argv", [program, *arguments])
        if program == "python":
            runpy.run_path(arguments[0], run_name="__main__")
            return self.capsys.readouterr().out
        assert program == "kava", f"cannot run {shlex.join(words)}; mark the block `not run: WHY`"
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self.capsys.readouterr()
        assert not ended.value.code, f"{shlex.join(words)}: {printed.err or printed.out}"
        return printed.out


def expect(shown, said):
    """Each line shown was printed, in this order; `...` stands for lines that are left out."""
    printed = iter([line.strip() for line in said.splitlines()])
    for line in map(str.strip, shown.splitlines()):
        assert line in ("", "...") or line in printed, f"not printed (here): {line}\n{said}"


@pytest.fixture
def reader(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_outside", {})
    before = set(sys.modules)
    yield Reader(monkeypatch, capsys)
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]


@pytest.mark.parametrize("page", PAGES)
def test_blocks_of_a_page_run_in_order(page, reader):
    for block in blocks(read(page)):
        reader.follow(block)


def test_what_is_not_run_says_why(capsys):
    found = [(page, block) for page in PAGES for block in blocks(read(page))]
    left_out = [(page, b.notes["not run"]) for page, b in found if "not run" in b.notes]
    run = sum(b.kind in RUNNABLE and "not run" not in b.notes for _, b in found)
    with capsys.disabled():
        print(f"\ndocs: {run} blocks run, {len(left_out)} not:")
        for page, why in left_out:
            print(f"  {page}: {why}")
    assert run > len(left_out)
    assert {block.kind for _, block in found} <= {
        *RUNNABLE,
        "text",
        "json",
        "yaml",
        "bibtex",
        "nginx",
    }
    noted = sum(len(re.findall(r"<!-- (?:not run|test adds|varies)\b", read(p))) for p in PAGES)
    assert noted == sum(len(block.notes) for _, block in found), "a note that is above no block"


def test_the_readme_runs_where_it_is_short(reader, monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks(read("README.md")):
        if block.kind == "python":
            reader.follow(block)


def test_the_readme_is_a_first_page_whose_links_lead_somewhere():
    text = read("README.md")
    assert len(text.splitlines()) <= 300
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        assert (ROOT / file).exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", read(file or "README.md"), re.MULTILINE)
            slugs = {re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings}
            assert anchor in slugs, target


def test_the_page_for_assistants_is_one_page_and_names_what_is_there():
    text = read("AGENTS.md")
    assert len(text.splitlines()) <= 60
    places = re.findall(r"\]\(([^)]+)\)|`((?:\w+/)+[\w.]+|src/kava)`|-m (tools\.\w+)", text)
    for name in (link or path or module.replace(".", "/") + ".py" for link, path, module in places):
        assert any((ROOT / above / name).exists() for above in ABOVE), name
    targets = re.findall(r"^    make ([\w-]+)", text, re.MULTILINE)
    assert targets and all(f"\n{target}:" in read("Makefile") for target in targets)
    assert re.search("never .*telemetry", text, re.IGNORECASE)
    assert "kava collects no telemetry" in read("README.md")


# -- commands that are only shown ----------------------------------------------------------------


def shown_commands():
    """Every `kava` line of the README and the pages, run or not, with where it stands."""
    for page in ("README.md", *PAGES):
        for block in blocks(read(page)):
            for words in commands(block, "kava ") if block.kind in ("", "bash") else ():
                yield pytest.param(words[1:], id=f"{page}: {shlex.join(words)}")


@pytest.mark.parametrize("words", list(shown_commands()) if DOCS.is_dir() else [])
def test_a_command_that_is_shown_exists_with_its_options(words):
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words:
        name, *words = words
        command = command.commands[name]
    if hasattr(command, "commands"):  # `kava recipes` alone
        return
    with command.make_context(command.name, list(words)):  # click ends where a word is wrong
        pass
    if command.name in ("train", "pretrain") and words[0].startswith("recipes/"):
        changes = [w for w in words if re.fullmatch(r"[\w.]+=\S+", w)]
        for file in find_all(words[0]):
            load_recipe(file, changes, Recipe if command.name == "train" else BackboneRecipe)


# -- generated pages -----------------------------------------------------------------------------


def pinned(package):
    return f"\n{package}=={importlib.metadata.version(package)}" in read("constraints.txt")


@pytest.mark.parametrize("file", reference.pages())
def test_a_reference_page_is_what_the_code_says_now(file):
    if file == "commands.md" and not (pinned("typer") and pinned("click")):
        pytest.skip("another version of typer or click lays help out in another way")
    assert read(f"docs/reference/{file}") == reference.pages()[file], (
        "python -m tools.reference docs/reference"
    )


def test_the_reference_of_python_has_every_public_name_and_its_arguments():
    page = read("docs/reference/python.md")
    assert all(re.search(rf"\b{name}\b", page) for name in kava.__all__ if name[0] != "_")
    parts = re.findall(r"^### ([^\n]+)\n\n```text\n(.+?)\n```\n(.*?)(?=^##)", page, re.M | re.S)
    assert len(parts) >= 16 and "device" in parts[0][1]
    for title, signature, told in parts:
        arguments = re.findall(r"\*{0,2}(\w+): ", signature)
        listed = re.search(r"\*\*Args\*\*\n\n(.*?)(?=\n\*\*|\Z)", told, re.S)
        named = re.findall(r"^- `(\w+)`:", listed[1], re.M) if listed else []
        assert set(named) <= set(arguments), title
    assert "<bot>" not in re.sub(r"`[^`]*`", "", page), "taken for HTML"


def test_the_reference_says_what_every_key_is_for_and_of_no_other_key():
    keys = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", read("docs/reference/recipe.md"), re.M))
    assert len(keys) > 70 and all(keys.values()), "kava/report/keys.py"
    told = {*key_meanings.TRAINING, *key_meanings.BACKBONE, *key_meanings.ROWS_AND_STEPS}
    assert told | {f"method_options.{key}" for key in key_meanings.OPTIONS} == keys.keys()


def test_without_a_name_every_page_is_filled(tmp_path, monkeypatch, capsys):
    """Which pages; what their tables hold, the tests below compare."""
    made = {
        name: lambda root, name=name: f"made: {name} of {root.name}\n" for name in readme.TABLES
    }
    monkeypatch.setattr(readme, "TABLES", made)
    for folder in ("results", "docs"):
        (tmp_path / folder).mkdir()
    for page in readme.PAGES:
        (tmp_path / page).write_text(read(page), encoding="utf-8")

    def filled():
        texts = {page: (tmp_path / page).read_text(encoding="utf-8") for page in readme.PAGES}
        told = {page: re.findall(r"^made: (\w+) of", text, re.M) for page, text in texts.items()}
        return {page: set(names) for page, names in told.items() if names}

    monkeypatch.chdir(tmp_path)
    readme.main(["docs/scale.md"])
    assert capsys.readouterr().out == "docs/scale.md\n" and list(filled()) == ["docs/scale.md"]
    with refused("tools.unknown-page", "docs/scales.md") as told:
        readme.main(["README.md", "docs/scales.md"])
    assert "'docs/scale.md'" in str(told.value)
    assert list(filled()) == ["docs/scale.md"]
    monkeypatch.chdir(tmp_path / "docs")
    readme.main([])
    assert capsys.readouterr().out.split() == list(readme.PAGES)
    assert filled() == {page: set(names) for page, names in readme.PAGES.items()}
    monkeypatch.setattr(sys, "argv", ["readme", "nothere.md"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(readme.__file__, run_name="__main__")
    assert ended.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("page", [page for page in readme.PAGES if page != "README.md"])
def test_a_page_has_the_committed_numbers(page):
    text, table = read(page), readme.PAGES[page][-1]
    assert readme.filled(text, ROOT, page) == text, f"python -m tools.readme {page}"
    with pytest.raises(ValueError, match=f"no place for the table '{table}'"):
        readme.filled(text.replace(f"<!-- {table} -->", ""), ROOT, page)


# -- what is quoted ------------------------------------------------------------------------------


@cache
def messages():
    """Every text in the package's code, docstrings apart, with `…` for what is filled in."""
    found = set()
    for file in (ROOT / "src" / "kava").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        told = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
        found |= {_text(n) for n in ast.walk(tree) if id(n) not in told and _text(n)}
    return found


def _text(node):
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) or "…" for part in node.values)
    return ""


def quoted():
    return re.findall(r"^### `(.+)`$", read("docs/troubleshooting.md"), re.MULTILINE)


def test_every_quoted_message_is_one_of_the_package():
    assert len(quoted()) >= 20 and len(set(quoted())) == len(quoted())
    for message in quoted():
        parts = [part for part in message.split("…") if part.strip()]
        pattern = re.compile(".*".join(map(re.escape, parts)), re.DOTALL)
        assert any(pattern.search(text) for text in messages()), f"no longer said: {message}"


RECIPE = "recipes/quickstart/kava.yaml"
CHECKPOINT = "checkpoints/quickstart/kava"
OWN = "data.train=good.jsonl data.validation=null"
#: What somebody does who then reads the message, by its first words.
MISTAKES = {
    "unknown key": f"train {RECIPE} train.step=3",
    "unknown …": f"train {RECIPE} method=kavva",
    "'…': an override": f"train {RECIPE} steps 3",
    "give exactly one": f"train {RECIPE} train.epochs=2",
    "train.batch_size": f"train {RECIPE} train.micro_batch_size=7",
    "…: not valid YAML": "train broken.yaml",
    "…: no such file or folder": "train recipes/quikstart/kava.yaml",
    "…: no field": f"train {RECIPE} data.train=bare.jsonl",
    "…: '…' must be a list": f"train {RECIPE} data.train=text.jsonl",
    "…: broken JSON": f"train {RECIPE} data.train=broken.jsonl",
    "…: a data file must end": f"train {RECIPE} data.train=rows.xlsx",
    "… has … rows": f"eval {CHECKPOINT} --task gsm8k --file good.jsonl -o out",
    "data: … validation": f"train {RECIPE} data.train=good.jsonl data.validation=good.jsonl",
    "backbone: …: no such folder": f"train {RECIPE} backbone=./nowhere",
    "…: neither a kava run": "ask empty question",
    "tokenizer of …: its files": "ask --backbone mute question",
    "…: already holds a run": f"train {RECIPE} {OWN} -o finished",
    "…: no complete checkpoint": f"train {RECIPE} {OWN} -o started --resume",
    "…: its recipe.yaml differs": f"train {RECIPE} {OWN} seed=7 -o started --resume",
    "kv.eviction.name: 'full'": f"train {RECIPE} {OWN} num_latents=2 kv.eviction.name=full -o full",
    "method '…' does not iterate": "ask checkpoints/quickstart/backbone question --iterations 2",
    "….weight …: method": f"train {RECIPE} method=pccot",
    "… has … tokens": f"ask {CHECKPOINT} {'pens,' * 600}",
    "num_latents … is not": "train recipes/quickstart/coconut.yaml num_latents=5",
    "serve: … can be reached": f"serve {CHECKPOINT} --host 0.0.0.0",
    "…: --allow-host …": f"serve {CHECKPOINT} --allow-host https://a.example",
}


def prepare_mistakes(folder):
    good = {"question": "Ann has 1 pen. How many?", "steps": ["<<1+1=2>>"], "answer": "2"}
    rows = {
        "good": good,
        "bare": {"question": "How many?"},
        "text": {**good, "steps": 2},
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"question": "How many?",}\n', encoding="utf-8")
    (folder / "rows.xlsx").write_text("question,answer\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("method: kava\n\tseed: 1\n", encoding="utf-8")
    for name in ("empty", "finished", "started"):
        (folder / name).mkdir()
    (folder / "finished" / "metrics.jsonl").write_text("{}\n", encoding="utf-8")
    (folder / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(ROOT / "checkpoints/quickstart/backbone" / name, folder / "mute")
    recipe = load_resolved(RECIPE, OWN.split())
    (folder / "started" / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")


def test_mistakes_get_the_message_that_the_page_explains(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    prepare_mistakes(tmp_path)
    for start, line in MISTAKES.items():
        (message,) = [text for text in quoted() if text.startswith(start)]
        monkeypatch.setattr(sys, "argv", ["kava", *line.split()])
        with pytest.raises(SystemExit) as ended:
            main()
        (said,) = capsys.readouterr().err.splitlines()
        assert ended.value.code == 2, line
        pattern = ".*".join(map(re.escape, message.split("…")))
        assert re.search(pattern, said), (line, said)


def told():
    """Path and text of each page, but for the log, which tells of what was there at the time."""
    log = {DOCS / "log.md", *(DOCS / "log").glob("*.md")}
    pages = [page for page in DOCS.rglob("*.md") if page not in log]
    return [(page.relative_to(DOCS).as_posix(), page.read_text(encoding="utf-8")) for page in pages]


#: Files of the method are named from their room.
ABOVE = ("", "src/kava", "src/kava/reasoning")


def test_every_file_that_a_page_names_exists():
    for page, text in told():
        made = [block.title for block in blocks(text) if block.title]
        for name in re.findall(r"`((?:\w+/)*\w+\.py|(?:\w+/)+\w+\.yaml)`", text):
            there = any((ROOT / above / name).is_file() for above in ABOVE)
            assert there or any(f"/{file}".endswith(f"/{name}") for file in made), (page, name)


def test_every_recipe_key_that_a_page_names_exists():
    rows = re.findall(r"^\| `([\w.]+)`", read("docs/reference/recipe.md"), re.MULTILINE)
    keys = {".".join(key.split(".")[:depth]) for key in rows for depth in (1, 2, 3)}
    sections = "|".join({key.partition(".")[0] for key in rows if "." in key})
    for page, text in told():
        for key in re.findall(rf"`((?:{sections})\.[a-z_0-9.]+)", text):
            assert key in keys or key.endswith(".py"), (page, key)


def test_nobody_is_sent_to_the_kava_of_pypi():
    """It is another project's; extras that are named exist."""
    extras = tomllib.loads(read("pyproject.toml"))["project"]["optional-dependencies"]
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    named = []
    for file in [*files, *(ROOT / "src" / "kava").rglob("*.py")]:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"pip install ['\"]?kava|kava\[\w", text), file
        named += re.findall(r"pip install -e '\.\[(\w+)\]'|\binstall\('(\w+)'\)", text)
        assert not re.search(r"pip install '?\.\[", text), f"{file}: -e, or a clone becomes a copy"
    assert {one or other for one, other in named} >= {"serve", "demo", "eval", "slurm", "track"}
    assert {one or other for one, other in named} <= extras.keys()
    identity = json.loads(read(f"{CHECKPOINT}/kava.json"))["backbone"]
    cards = (card(load_resolved(RECIPE), identity), read(f"{CHECKPOINT}/README.md"))
    assert all("not on PyPI" in text for text in (read("README.md"), *cards))


# -- the site ------------------------------------------------------------------------------------

needs_mkdocs = pytest.mark.skipif(
    importlib.util.find_spec("material") is None, reason="needs kava[docs]"
)


@pytest.mark.processes
@needs_mkdocs
def test_the_site_builds_without_a_warning_and_loads_nothing_from_outside(tmp_path):
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": ""}
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES)
    loads = re.compile(r"<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=\"?https?:[^>]*>")
    for page in pages:
        assert not loads.findall(page.read_text(encoding="utf-8")), page
    assert list((tmp_path / "site" / "results").rglob("*.png")), "pictures of the results"


@pytest.mark.processes
@needs_mkdocs
def test_a_broken_link_breaks_the_build(tmp_path):
    """`--strict` counts warnings only if they are shown and the settings make them warnings."""
    settings = yaml.safe_load(read("mkdocs.yml").replace("!!python", "#"))
    wrong = {**settings, "nav": ["index.md"], "hooks": [], "plugins": [], "docs_dir": "docs"}
    (tmp_path / "docs").mkdir()
    (tmp_path / "mkdocs.yml").write_text(json.dumps(wrong), encoding="utf-8")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    for link in ("no.md", "#b"):
        (tmp_path / "docs" / "index.md").write_text(f"[a]({link})\n", encoding="utf-8")
        done = subprocess.run(
            words, cwd=tmp_path, capture_output=True, text=True, env=env, timeout=120
        )
        assert done.returncode and f"'{link}'" in done.stderr, (link, done.stderr)
