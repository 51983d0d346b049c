"""What a training goes on from after a disk, a kill or another run got in its way."""

import resource
import shutil

import pytest
import yaml
from parallel_worker import train
from rich.console import Console
from tiny import lora, reasoner

from kava import checkpoint
from kava.errors import KavaError
from kava.provenance import write_json
from kava.run import alone, read_metrics, read_result
from kava.smoke import tiny_backbone

TREE = {
    "method": "no_cot", "adapter": "full",
    "data": {"train": "synthetic", "train_rows": 12},
    "train": {
        "steps": 8, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "save_every": 3,
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(recipe, an uninterrupted run, one cut off after step 7 with checkpoints 3 and 6)."""
    folder = tmp_path_factory.mktemp("given")
    tiny_backbone("llama", folder / "backbone")
    recipe = folder / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**TREE, "backbone": str(folder / "backbone")}))
    train(recipe, folder / "whole")
    train(recipe, folder / "cut", stop_after=7)
    return recipe, folder / "whole", folder / "cut"


@pytest.fixture
def cut(given, tmp_path):
    """A copy of the run that was cut off."""
    return shutil.copytree(given[2], tmp_path / "cut")


def losses(run):
    return [r["loss"] for r in read_metrics(run)]


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


FILES = [
    "kava.safetensors", "backbone/model.safetensors", "optimizer.pt", "scheduler.pt",
    "trainer_state.json", "kava.json",
]  # fmt: skip


@pytest.mark.parametrize("file", FILES)
def test_a_file_cut_in_half_is_named_and_nothing_older_is_taken_unasked(file, given, cut):
    newest = cut / "checkpoints/checkpoint-6"
    halve(newest / file)
    before = (cut / "metrics.jsonl").read_bytes()
    with pytest.raises(KavaError) as told:
        train(given[0], cut, resume=True)
    assert str(told.value) == (
        f"{newest / file}: damaged; delete {newest}, and --resume goes on from checkpoint-3, "
        "which is whole"
    )
    assert (cut / "metrics.jsonl").read_bytes() == before


def test_as_it_says_it_then_goes_on_from_the_one_before(given, cut):
    shutil.rmtree(cut / "checkpoints/checkpoint-6")
    train(given[0], cut, resume=True)
    assert read_result(cut)["resumed_from"] == 3
    assert losses(cut) == losses(given[1])


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "kava.json", "backbone"])
def test_a_missing_file_is_no_reason_to_begin_it_anew(file, given, cut):
    gone = cut / "checkpoints/checkpoint-6" / file
    if gone.is_dir():
        shutil.rmtree(gone)
    else:
        gone.unlink()
    with pytest.raises(KavaError, match=f"{file}.* from checkpoint-3, which is whole"):
        train(given[0], cut, resume=True)


def test_where_none_is_whole_it_says_so(given, cut):
    for step in (3, 6):
        halve(cut / f"checkpoints/checkpoint-{step}/optimizer.pt")
    with pytest.raises(KavaError, match=r"optimizer.pt: damaged; no other .* is whole: start anew"):
        train(given[0], cut, resume=True)


def test_one_whose_writing_was_cut_off_never_counted(given, cut):
    (cut / "checkpoints/checkpoint-6/trainer_state.json").unlink()  # written last
    train(given[0], cut, resume=True)
    assert read_result(cut)["resumed_from"] == 3
    assert losses(cut) == losses(given[1])


def test_a_full_disk_while_saving_leaves_the_checkpoint_before(given, tmp_path):
    with pytest.raises(KavaError, match=r"checkpoint-6: cannot be written: .*File too large"):
        train(given[0], tmp_path / "run", full_disk_at=4)
    assert [f.name for f in (tmp_path / "run/checkpoints").iterdir()] == ["checkpoint-3"]
    train(given[0], tmp_path / "run", resume=True)
    assert losses(tmp_path / "run") == losses(given[1])


@pytest.fixture
def full_disk():
    """No file may be longer than 2 kB: the system's own error, as of a quota."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("adapter", ({}, lora()))
def test_a_full_disk_leaves_the_trained_checkpoint_as_it_was(adapter, tmp_path, full_disk):
    first, second = reasoner(**adapter), reasoner(seed=1, **adapter)
    checkpoint.save(first, tmp_path / "checkpoint")
    before = {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}
    full_disk()
    with pytest.raises(KavaError, match=r"checkpoint: cannot be written: .*File too large"):
        checkpoint.save(second, tmp_path / "checkpoint")
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}


def test_a_full_disk_leaves_results_as_they_were(tmp_path, full_disk):
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    full_disk()
    with pytest.raises(KavaError, match=r"result.json: cannot be written: File too large; free"):
        write_json(file, {"a": "b" * 3_000})
    assert file.read_text() == '{\n "a": 1\n}\n' and len(list(tmp_path.iterdir())) == 1


def test_two_trainings_in_one_folder(given, tmp_path):
    console = Console(quiet=True)
    with alone(tmp_path / "run", console), pytest.raises(KavaError, match=r"run: in use: process"):
        train(given[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(given[0], tmp_path / "run")
    assert losses(tmp_path / "run") == losses(given[1])
    assert [f.name for f in tmp_path.iterdir()] == ["run"]
