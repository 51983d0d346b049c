"""Nothing is written through a link that somebody put into a folder; a card holds no markup."""

import ast
import json
import os
import secrets
import shutil
import stat
from pathlib import Path

import pytest
import yaml
from refusals import refused
from tiny import lora, recipe

from kava.evaluation.ablation import PLOT
from kava.reasoning.model_card import card
from kava.reasoning.reasoner import Reasoner
from kava.runs import folder as folders
from kava.sweeps import record
from kava.system import links, lock
from kava.system.files import check_writable, write_json, write_whole
from kava.system.links import check_tree

ROOT = Path(__file__).resolve().parent.parent
REFUSED = "system.symbolic-link"
MINE = "what only I may change"


@pytest.fixture
def home(tmp_path):
    """A folder with a file of the user's; asserts that it stays as it is."""
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "file").write_text(MINE)
    yield folder
    assert [file.name for file in folder.iterdir()] == ["file"]
    assert (folder / "file").read_text() == MINE


@pytest.fixture
def run(backbone, tmp_path):
    """A run folder as somebody passes it on."""
    reasoner = Reasoner.build(recipe("kava", **lora(), backbone=str(backbone)))
    reasoner.save_pretrained(tmp_path / "run" / "checkpoint")
    return tmp_path / "run"


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    line = {"question": "1 + 1", "steps": ["1 + 1 = 2"], "answer": "2"}
    file.write_text(2 * (json.dumps(line) + "\n"))
    return file


@pytest.fixture
def written(backbone, rows, tmp_path):
    tree = {
        "method": "no_cot", "backbone": str(backbone), "adapter": "full",
        "data": {"train": str(rows)},
        "train": {"steps": 2, "batch_size": 2, "learning_rate": 1e-3, "save_every": 1},
    }  # fmt: skip
    file = tmp_path / "given.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


def plant(link, target):
    """A link; what is in its place is moved to where it leads if there is nothing yet."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.exists():
        shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(target)
    return link


def assert_refused(outcome, link):
    status, said = outcome
    assert (status, said.code, said.key) == (2, REFUSED, str(link)) and "Traceback" not in said
    assert said.strip().splitlines()[-1].startswith(f"kava: {link}: ")


# -- refused -------------------------------------------------------------------------------------

SCORES = ("checkpoint/README.md", "predictions/rows-rows.jsonl", "result.json", "scores.lock")


@pytest.mark.parametrize("target", ["file", "nothing"])
@pytest.mark.parametrize("name", [*SCORES, "predictions"])
def test_scores_are_not_written_through_a_link(name, target, kava, run, rows, home):
    target = home if name == "predictions" and target == "file" else home / target
    link = plant(run / name, target)
    assert_refused(kava("eval", run, "--task", "rows", "--file", rows), link)


def test_nor_where_the_checkpoint_is_one(kava, run, rows, tmp_path):
    (run / "checkpoint").rename(tmp_path / "elsewhere")
    link = plant(run / "checkpoint", tmp_path / "elsewhere")
    before = {f: f.read_bytes() for f in (tmp_path / "elsewhere").rglob("*") if f.is_file()}
    assert_refused(kava("eval", run, "--task", "rows", "--file", rows), link)
    assert before == {f: f.read_bytes() for f in (tmp_path / "elsewhere").rglob("*") if f.is_file()}


def test_a_description_that_is_a_link_is_read_and_not_replaced(kava, run, rows, tmp_path):
    file = tmp_path / "kava.json"
    (run / "checkpoint/kava.json").rename(file)
    text, link = file.read_text(), plant(run / "checkpoint/kava.json", file)
    assert_refused(kava("eval", run, "--task", "rows", "--file", rows), link)
    assert file.read_text() == text and link.is_symlink()


@pytest.mark.parametrize("name", ["inspect", "PAGE"])
def test_nor_a_page(name, kava, run, home):
    code, said = kava("inspect", run, "1 + 1", "--steps", "1 + 1 = 2", "--answer", "2")
    page = next((run / "inspect").iterdir())
    assert code == 0, said
    link = plant(page, home / "nothing") if name == "PAGE" else plant(page.parent, home)
    words = ("inspect", run, "1 + 1", "--steps", "1 + 1 = 2", "--answer", "2")
    assert_refused(kava(*words), link)


@pytest.mark.parametrize("name", ["predictions/ablation", "predictions/ablation/x.jsonl", PLOT])
def test_nor_an_ablation(name, kava, run, rows, home):
    link = plant(run / name, home if name == "predictions/ablation" else home / "file")
    assert_refused(kava("ablate", run, "--task", "rows", "--file", rows), link)


@pytest.mark.parametrize(
    "name", ["metrics.jsonl", "begun.json", "checkpoint", "checkpoint.partial", "checkpoints"]
)
def test_nor_a_training(name, kava, written, home, tmp_path):
    link = plant(tmp_path / "out" / name, home / "nothing")
    assert_refused(kava("train", written, "-o", tmp_path / "out"), link)


@pytest.mark.parametrize("name", ["checkpoints/checkpoint-2", "metrics.jsonl", "checkpoints"])
def test_nor_one_that_goes_on(name, kava, written, home, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr("kava.training.run.clear", lambda run: None)
    assert kava("train", written, "-o", out)[0] == 0
    (out / "result.json").unlink()
    link = plant(out / name, home if name.startswith("checkpoints") else home / "file")
    assert_refused(kava("train", written, "-o", out, "--resume"), link)


def test_nor_a_backbone(home, tmp_path):
    for name in ("config.json", "model.safetensors", "tokenizer.json", "sample.jsonl"):
        link = plant(tmp_path / "out" / name, home / "nothing")
        with refused(REFUSED, str(link)):
            folders._prepare(tmp_path / "out", recipe(), False, {})
        link.unlink()


def test_nor_a_sweep(kava, written, home, tmp_path):
    assert kava("sweep", written, "-o", tmp_path / "other")[0] == 0
    run = next(path.name for path in (tmp_path / "other").iterdir() if path.is_dir())
    for name, code in ((run, 1), ("summary.json", 2), ("sweep.json", 2)):
        link = plant(tmp_path / "out" / name, home if name != "sweep.json" else home / "nothing")
        outcome = kava("sweep", written, "-o", tmp_path / "out")
        assert outcome[0] == code and f"{link}: " in outcome[1], outcome
        assert code == 1 or outcome[1].code == REFUSED
        link.unlink()


def test_nor_jobs(home, tmp_path):
    link = plant(tmp_path / "out/slurm/jobs.jsonl", home / "file")
    with refused(REFUSED, str(link)):
        record.add_jobs(tmp_path / "out", [record.SlurmJob("run", "1", "log")])


def test_nor_a_lock(home, tmp_path):
    """A link to nothing was taken for a lock that somebody has just let go of, over and over."""
    link = plant(tmp_path / "out/lock", home / "nothing")
    with refused(REFUSED, str(link)), lock.acquire(link):
        pass


def test_links_of_a_library_may_lead_beside_themselves_alone(home, tmp_path):
    (tmp_path / "script.sh").touch()
    (tmp_path / ".own_1.sh").symlink_to(tmp_path / "script.sh")
    check_tree(tmp_path, apart_from=".own_*.sh")
    with refused(REFUSED, str(tmp_path / ".own_1.sh")):
        check_tree(tmp_path)
    link = plant(tmp_path / ".own_2.sh", home / "file")
    with refused(REFUSED, str(link)):
        check_tree(tmp_path, apart_from=".own_*.sh")


def test_a_result_that_is_a_link_is_refused_before_it_is_measured(home, tmp_path):
    link = plant(tmp_path / "result.json", home / "file")
    for write in (check_writable, lambda file: write_json(file, {})):
        with refused(REFUSED, str(link)):
            write(link)


# -- where links may be --------------------------------------------------------------------------


def test_the_folder_that_is_given_may_be_a_link_or_lie_below_one(kava, written, rows, tmp_path):
    (tmp_path / "disk/run").mkdir(parents=True)
    runs = plant(tmp_path / "runs", tmp_path / "disk")
    latest = plant(tmp_path / "latest", tmp_path / "disk/run")
    for folder in (runs / "run", runs / "b"):
        assert kava("train", written, "-o", folder)[0] == 0
    for folder in (latest, runs / "b"):
        code, said = kava("eval", folder, "--task", "rows", "--file", rows)
        assert code == 0, said
    assert (tmp_path / "disk/run/predictions/rows-rows.jsonl").is_file()
    assert latest.is_symlink() and runs.is_symlink()
    assert kava("train", written, "-o", latest)[0] == 2  # holds a run


def test_a_checkpoint_may_be_saved_where_a_link_leads(run, tmp_path):
    reasoner = Reasoner.from_pretrained(run)
    link = plant(tmp_path / "link", tmp_path / "disk")
    for _ in range(2):
        reasoner.save_pretrained(link)
        assert link.is_symlink() and (tmp_path / "disk/kava.json").is_file()


def test_what_is_read_may_consist_of_links(kava, run, rows, tmp_path):
    """As a snapshot in the Hub's cache does."""
    blobs = (run / "checkpoint").rename(tmp_path / "blobs")
    for file in [file for file in blobs.rglob("*") if file.is_file()]:
        plant(run / file.relative_to(blobs), file)
    before = {file: file.read_bytes() for file in blobs.rglob("*") if file.is_file()}
    words = ("eval", run, "--task", "rows", "--file", rows, "-o", tmp_path / "out")
    code, said = kava(*words)
    assert code == 0, said
    assert before == {file: file.read_bytes() for file in blobs.rglob("*") if file.is_file()}


def test_links_of_others_beside_a_run_do_not_matter(written, kava, tmp_path):
    plant(tmp_path / "out/lib64", tmp_path)
    assert kava("train", written, "-o", tmp_path / "out")[0] == 0


# -- the pieces ----------------------------------------------------------------------------------


def test_a_new_file_is_new_and_readable_by_whom_the_user_lets(tmp_path, home, monkeypatch):
    write_whole(tmp_path / "a", "ä\n")
    assert (tmp_path / "a").read_bytes() == "ä\n".encode()
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    monkeypatch.setattr(secrets, "token_hex", lambda count: "guessed")
    plant(tmp_path / "kava-guessed.partial", home / "file")
    with refused("system.not-writable", str(tmp_path / "a")) as told:
        write_whole(tmp_path / "a", "b")
    assert "File exists" in str(told.value)


def test_the_system_is_told_too_that_no_link_is_followed(tmp_path, home, monkeypatch):
    """A link may be put there between the check and the writing."""
    monkeypatch.setattr(links, "check", lambda *given: None)
    with pytest.raises(OSError, match="symbolic link"):
        links.append(plant(tmp_path / "log", home / "file"), "x")
    write_whole(plant(tmp_path / "result.json", home / "file"), "x")
    assert not (tmp_path / "result.json").is_symlink()


def test_lines_are_added(tmp_path):
    for text in ("a\n", "ß\n"):
        links.append(tmp_path / "log", text)
    assert (tmp_path / "log").read_text(encoding="utf-8") == "a\nß\n"


#: Files that write without `kava.system.links`, and why they may.
OTHERS = {
    "links.py": "it is what the others call",
    "lock.py": "its own file, which filelock has opened, and no link",
    "memory.py": "a file of the system",
    "_symbolic_worker.py": "what was open already",
    "environment.py": "a device, to see whether this process may open it",
    "smoke.py": "makes its folder anew, or not at all",
}


def writes(text):
    """Calls in Python source that write to a path."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        last = name.rpartition(".")[2]
        given = [*node.args, *(word.value for word in node.keywords)]
        modes = {a.value for a in given if isinstance(a, ast.Constant) and isinstance(a.value, str)}
        opens = last in ("open", "fdopen") and any(
            set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes
        )
        copies = name.startswith("shutil.copy") or name in ("os.open", "shutil.move")
        draws = last == "savefig" and ast.unparse(node.args[0]) != "image"
        if opens or copies or draws or last in ("write_text", "write_bytes", "touch"):
            yield ast.unparse(node)


def test_every_file_is_written_where_links_are_refused():
    found = {}
    for file in (ROOT / "src").rglob("*.py"):
        if calls := list(writes(file.read_text(encoding="utf-8"))):
            found[file.name] = calls
    assert set(found) == set(OTHERS), found


def test_a_file_that_is_written_otherwise_is_seen():
    for text in (
        "p.write_text('')", "open(p, 'w')", "p.open('a', encoding='utf-8')", "open(p, mode='r+b')",
        "figure.savefig(path)", "shutil.copy(a, b)", "os.open(p, os.O_RDONLY)",
    ):  # fmt: skip
        assert list(writes(text)), text
    assert not list(writes("open(p); p.open('rb'); p.open(encoding='utf-8'); webbrowser.open(p)"))


# -- the card ------------------------------------------------------------------------------------

EVIL = (
    'a\n---\n# Big\n\n```\n<img src=x onerror=y> [l](http://e) | `c` *b* ![i](j) _e_ &lt; \u202e"'
)


def evil_card(**changes):
    identity = {
        "name": EVIL, "revision": EVIL, "model_type": EVIL, "num_layers": EVIL,
        "hidden_size": EVIL, "vocab_size": EVIL, "fingerprint": EVIL,
    }  # fmt: skip
    score = {
        "version": EVIL, "split": EVIL, "accuracy": EVIL, "accuracy_se": 1.0, "n": 1, "rule": EVIL,
        "accuracy_by_rule": {EVIL: EVIL}, "forward_passes": EVIL,
    }  # fmt: skip
    told = {
        "data": {"train": {"source": EVIL, "rows": 1, "revision": EVIL, "sha256": EVIL}},
        "steps": EVIL, "train_seconds": EVIL, "trained_weights": EVIL, "command": EVIL,
        "commit": EVIL, "time": EVIL, "versions": {EVIL: EVIL}, "scores": {EVIL: score},
        "validation_accuracy": EVIL, "validation_n": EVIL,
    }  # fmt: skip
    return card(recipe(description=EVIL), identity, told)


def test_each_value_on_a_card_is_one_line_and_no_markup():
    text = evil_card()
    _, head, body = text.split("---\n", 2)
    assert "\n" not in yaml.safe_load(head)["base_model"]
    assert set(yaml.safe_load(head)) == {"library_name", "pipeline_tag", "tags", "base_model"}
    before, _, block = body.partition("## Recipe\n\n")
    assert block.startswith("````yaml\n") and block.endswith("````\n")
    assert "````" not in block[4:-5]
    plain = before.replace("```python", "").replace("\n```\n", "\n")  # the card's own
    headings = [line for line in plain.splitlines() if line.startswith("#")]
    assert headings[0].startswith("# kava on a --- \\# Big")
    assert headings[1:] == [
        "## How to use it", "## What it was made from", "## What was measured",
        "## What was not measured",
    ]  # fmt: skip
    lines = [line for line in plain.splitlines() if line.startswith("|")]
    assert [line.replace("\\|", "").count("|") for line in lines] == [3] * (len(lines) - 3) + [
        7
    ] * 3
    assert "\u202e" not in text
    from markdown_it import MarkdownIt

    tokens = MarkdownIt("commonmark").enable("table").parse(before)
    kinds = {one.type for token in tokens for one in (token, *(token.children or ()))}
    assert not kinds & {"html_inline", "html_block", "image", "em_open", "strong_open", "hr"}
    targets = {
        one.attrs["href"]
        for token in tokens
        for one in token.children or ()
        if one.type == "link_open"
    }
    assert targets == {"https://arxiv.org/abs/2510.02312"}


def test_names_stay_as_they_are():
    identity = {
        "name": "meta-llama/Llama-3.2_1B", "revision": "abc", "model_type": "gemma3_text",
        "num_layers": 2, "hidden_size": 3, "fingerprint": "f00",
    }  # fmt: skip
    text = card(recipe(), identity, {"command": "kava train a|b.yaml 'x`y'", "steps": 1})
    assert "meta-llama/Llama-3.2_1B at revision `abc` (gemma3_text, 2 layers" in text
    assert "| command | `` kava train a\\|b.yaml 'x`y' `` |" in text


def test_a_record_that_is_none_is_one_line(kava, run, rows):
    file = run / "checkpoint/kava.json"
    told = json.loads(file.read_text())
    del told["backbone"]["model_type"]
    before = json.dumps(told)
    file.write_text(before)
    from kava.reasoning import checkpoint

    with refused("reasoning.no-model-card", str(run / "checkpoint")):
        checkpoint.add_results(run / "checkpoint", {})
    assert file.read_text() == before


@pytest.mark.parametrize("private", (True, False))
def test_a_folder_in_the_shared_temporary_folder_is_its_users_alone(private, tmp_path, monkeypatch):
    """Also where the user lets others write into new folders."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path if private else tmp_path / "elsewhere"))
    before = os.umask(0)
    try:
        write_json(tmp_path / "a" / "b" / "c.json", {})
        with lock.acquire(tmp_path / "d" / "e.lock"):
            modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a", "a/b", "d")]
    finally:
        os.umask(before)
    assert modes == [0o700 if private else 0o777] * 3
    tmp_path.joinpath("f").write_text("")
    with refused("system.not-writable"):
        write_json(tmp_path / "f" / "g.json", {})
