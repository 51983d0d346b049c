"""What a training goes on from after a disk, a kill or another run got in its way."""

import resource
import shutil

import pytest
import torch
import yaml
from parallel_worker import train
from refusals import refused
from tiny import lora, reasoner

from kava.backbones.tiny import tiny_backbone
from kava.reasoning import checkpoint
from kava.runs.folder import exclusive_lock, read_metrics, read_result
from kava.runs.resume import CHECKSUMS_FILE, last_checkpoint
from kava.system.files import write_json

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
    with refused("reasoning.damaged", str(newest / file)) as told:
        train(given[0], cut, resume=True)
    assert str(told.value) == (
        f"{newest / file}: damaged; delete {newest}, and --resume continues from checkpoint-3, "
        "which is complete"
    )
    assert (cut / "metrics.jsonl").read_bytes() == before


def flip(file, count=200):
    """Other bytes in the middle of a file, which keeps its length."""
    whole = bytearray(file.read_bytes())
    begin = max(0, len(whole) // 2 - count // 2)
    whole[begin : begin + count] = bytes(b ^ 255 for b in whole[begin : begin + count])
    file.write_bytes(whole)


@pytest.mark.parametrize("file", [*FILES, "recipe.yaml", "backbone/config.json", CHECKSUMS_FILE])
def test_flipped_bytes_are_named(file, cut):
    newest = cut / "checkpoints/checkpoint-6"
    assert last_checkpoint(cut) == str(newest)
    flip(newest / file)
    with refused("reasoning.damaged", str(newest / file)) as told:
        last_checkpoint(cut)
    assert f"delete {newest}, " in str(told.value)


@pytest.mark.parametrize("bit", range(8))
def test_one_bit_of_the_weights_is_named(bit, cut):
    file = cut / "checkpoints/checkpoint-6/backbone/model.safetensors"
    whole = bytearray(file.read_bytes())
    whole[-1 - 999 * bit] ^= 1 << bit
    file.write_bytes(whole)
    with refused("reasoning.damaged", str(file)):
        last_checkpoint(cut)


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt"])
def test_without_hashes_torchs_own_files_are_still_looked_through(file, given, cut):
    newest = cut / "checkpoints/checkpoint-6"
    (newest / CHECKSUMS_FILE).unlink()  # of an older version, or killed before they were written
    assert last_checkpoint(cut) == str(newest)
    flip(newest / file)
    with refused("reasoning.damaged", str(newest / file)):
        last_checkpoint(cut)


@pytest.mark.parametrize("state", ["{}", "[]", '{"global_step": 0, "max_steps": 0}',
                                   '{"global_step": 6, "max_steps": 0}',
                                   '{"global_step": 3, "max_steps": 8}',
                                   '{"global_step": null, "max_steps": 8}'])  # fmt: skip
def test_a_state_of_another_step_is_damaged(state, cut):
    newest = cut / "checkpoints/checkpoint-6"
    (newest / CHECKSUMS_FILE).unlink()
    (newest / "trainer_state.json").write_text(state)
    with refused("reasoning.damaged", str(newest / "trainer_state.json")):
        last_checkpoint(cut)


@pytest.mark.parametrize("name", ["checkpoint-6-c", "checkpoint-backup", "checkpoint-9x"])
def test_copies_of_checkpoints_are_none(name, cut):
    shutil.copytree(cut / "checkpoints/checkpoint-6", cut / "checkpoints" / name)
    assert last_checkpoint(cut) == str(cut / "checkpoints/checkpoint-6")


@pytest.mark.parametrize("file, state", [("optimizer.pt", {}), ("optimizer.pt", [1]),
                                         ("scheduler.pt", [1])])  # fmt: skip
def test_a_state_that_does_not_fit_is_one_line(file, state, given, cut):
    newest = cut / "checkpoints/checkpoint-6"
    (newest / CHECKSUMS_FILE).unlink()
    torch.save(state, newest / file)
    with refused("training.other-checkpoint", str(newest / file)) as told:
        train(given[0], cut, resume=True)
    assert "Error: " in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize(
    "line, code",
    [(b"[1]", "runs.no-step"), (b'{"loss": 1}', "runs.no-step"), (b'{"step": "2"}', "runs.no-step"),
     (b'{"step": 2, "\xff": 1}', "runs.not-a-log"), (b'{"step": 2', "runs.not-a-log")],
)  # fmt: skip
def test_a_damaged_log_is_named_by_its_line_and_left_as_it_is(line, code, given, cut):
    log = cut / "metrics.jsonl"
    first, *rest = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([first, line, *rest]) + b"\n")
    before = log.read_bytes()
    for act in (lambda: train(given[0], cut, resume=True), lambda: read_metrics(cut)):
        with refused(code, str(log)) as told:
            act()
        assert "metrics.jsonl, line 2: " in str(told.value)
    assert log.read_bytes() == before


def test_the_logs_last_line_may_be_cut_off(given, cut):
    log = cut / "metrics.jsonl"
    log.write_bytes(log.read_bytes() + b'{"step": 7, "\xf0')
    train(given[0], cut, resume=True)
    assert losses(cut) == losses(given[1])


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
    with refused("reasoning.file-missing") as told:
        train(given[0], cut, resume=True)
    assert file in told.value.key or file == "backbone"
    assert " from checkpoint-3, " in str(told.value)


def test_where_none_is_whole_it_says_so(given, cut):
    for step in (3, 6):
        halve(cut / f"checkpoints/checkpoint-{step}/optimizer.pt")
    file = cut / "checkpoints/checkpoint-6/optimizer.pt"
    with refused("reasoning.damaged", str(file)) as told:
        train(given[0], cut, resume=True)
    assert "--output" in str(told.value) and "delete" not in str(told.value)


def test_one_whose_writing_was_cut_off_never_counted(given, cut):
    (cut / "checkpoints/checkpoint-6/trainer_state.json").unlink()  # written last
    train(given[0], cut, resume=True)
    assert read_result(cut)["resumed_from"] == 3
    assert losses(cut) == losses(given[1])


def test_a_full_disk_while_saving_leaves_the_checkpoint_before(given, tmp_path):
    with refused("system.not-written") as told:
        train(given[0], tmp_path / "run", full_disk_at=4)
    assert told.value.key.endswith("checkpoint-6") and "File too large" in str(told.value)
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
    with refused("system.not-written", str(tmp_path / "checkpoint")) as told:
        checkpoint.save(second, tmp_path / "checkpoint")
    assert "File too large" in str(told.value)
    assert before == {f: f.read_bytes() for f in tmp_path.rglob("*") if f.is_file()}


def test_a_full_disk_leaves_results_as_they_were(tmp_path, full_disk):
    file = tmp_path / "result.json"
    write_json(file, {"a": 1})
    full_disk()
    with refused("system.not-written", str(file)) as told:
        write_json(file, {"a": "b" * 3_000})
    assert "File too large" in str(told.value)
    assert file.read_text() == '{\n "a": 1\n}\n' and len(list(tmp_path.iterdir())) == 1


def test_two_trainings_in_one_folder(given, tmp_path):
    with exclusive_lock(tmp_path / "run"), refused("runs.in-use", str(tmp_path / "run")):
        train(given[0], tmp_path / "run")
    assert not (tmp_path / "run").exists()
    train(given[0], tmp_path / "run")
    assert losses(tmp_path / "run") == losses(given[1])
    assert [f.name for f in tmp_path.iterdir()] == ["run"]
