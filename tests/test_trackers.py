"""Each tracker that `train.report_to` can name gets every term of the loss, read back here.

trackio and wandb are in the extra `track`: `make test-extras` runs this with all three.
"""

import importlib.util
import json
import struct

import pytest

from kava.__main__ import main
from kava.runs.folder import read_metrics

TERMS = {"loss", "student_ce", "teacher_ce", "codi", "kv", "kv_step_1", "kv_step_2", "grad_norm"}
TRACKERS = ("tensorboard", "trackio", "wandb")
INSTALLED = [name for name in TRACKERS if importlib.util.find_spec(name)]
STEPS = 2


@pytest.fixture(scope="module")
def folder(backbone, tmp_path_factory):
    """Holds a training of two steps that reported to every tracker that is installed."""
    folder = tmp_path_factory.mktemp("tracked")
    tree = {
        "method": "kava", "backbone": str(backbone), "num_latents": 4, "num_iterations": 1,
        "lora": {"r": 4}, "codi": {"weight": 1}, "kv": {"weight": 1, "supervise": "all"},
        "data": {"train": "synthetic", "train_rows": 8},
        "train": {"steps": STEPS, "batch_size": 2, "learning_rate": 1e-3, "log_every": 1,
                  "report_to": INSTALLED},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(json.dumps(tree), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("WANDB_MODE", "offline")
        patched.setenv("WANDB_DIR", str(folder))
        patched.setenv("TRACKIO_DIR", str(folder / "trackio"))
        words = ["kava", "train", str(folder / "recipe.yaml"), "-o", str(folder / "run")]
        patched.setattr("sys.argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    return folder


def of_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "run" / "tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name.startswith("train/")]
    return [
        {
            name: event.value
            for name in names
            for event in events.Scalars(name)
            if event.step == step
        }
        for step in range(1, STEPS + 1)
    ]


def of_trackio(folder):
    from trackio.sqlite_storage import SQLiteStorage

    assert list((folder / "trackio").glob("kava*")), "the project, where TRACKIO_DIR says"
    return SQLiteStorage.get_logs("kava", "run")


def of_wandb(folder):
    """Records of an offline run: parts of blocks of 32 kB, each with a header of 7 bytes."""
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    wandb.teardown()  # and waits until its own process has written the file
    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, whole, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # all of a record, or its last part
            items = Record.FromString(whole).history.item
            found.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
            whole = b""
    return [record for record in found if record]


@pytest.mark.parametrize("name", TRACKERS)
def test_every_term_of_the_loss_is_logged_at_every_step(name, folder):
    if name not in INSTALLED:
        pytest.skip(f"{name} is not installed: make test-extras")
    read_back = {"tensorboard": of_tensorboard, "trackio": of_trackio, "wandb": of_wandb}[name]
    logged = [record for record in read_back(folder) if "train/loss" in record]
    kept = [record for record in read_metrics(folder / "run") if "loss" in record]
    assert len(kept) == len(logged) == STEPS and all(record.keys() >= TERMS for record in kept)
    for record, seen in zip(kept, logged, strict=True):
        assert {term: seen[f"train/{term}"] for term in TERMS} == pytest.approx(
            {term: record[term] for term in TERMS}
        )
