"""A checkpoint gives back the same model, anywhere, or says by name what does not fit."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny import backbone_parameters, bare, batch, example, lora, recipe, tokenizer

from kava.backbones import loading
from kava.reasoning.interface import SPECIAL_TOKENS
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.system.hashes import sha256

EXAMPLES = [example(4, 6), example(7, 3, 1, "1 2 3")]
QUESTIONS = ["w1 w2 w3", "w4"]
ADAPTERS = {"full": {}, "lora": lora()}


def store(folder, family="llama", seed=0, **config):
    """A backbone as it lies on disk."""
    model = bare(family, seed)
    model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def learn(thinker, steps):
    """A few optimiser steps, so that every trained weight moves away from where it began."""
    trained = [p for p in thinker.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        thinker(**batch(thinker, EXAMPLES))["loss"].backward()
        optimizer.step()
    return thinker


def outputs(thinker):
    with torch.no_grad():
        terms = thinker(**batch(thinker, EXAMPLES))
    return terms, thinker.continue_from(thinker.think(QUESTIONS), 6)


def assert_same(first, second):
    for name, value in first[0].items():
        torch.testing.assert_close(second[0][name], value, rtol=1e-6, atol=1e-6, msg=name)
    assert torch.equal(first[1], second[1])


def build(tmp_path, family, adapter, method="kava"):
    backbone = store(tmp_path / "backbone", family)
    changes = {**ADAPTERS[adapter], "backbone": str(backbone)}
    return learn(Reasoner.build(recipe(method, **changes)).eval(), 2)


@pytest.fixture(params=ADAPTERS)
def saved(request, tmp_path):
    """(reasoner, its checkpoint folder)."""
    thinker = build(tmp_path, "llama", request.param)
    thinker.save_pretrained(tmp_path / "checkpoint")
    return thinker, tmp_path / "checkpoint"


@pytest.fixture
def full(tmp_path):
    build(tmp_path, "llama", "full").save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


@pytest.fixture
def adapted(tmp_path):
    build(tmp_path, "llama", "lora").save_pretrained(tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


# -- the same model ------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_loaded_from_another_directory_it_answers_the_same(tmp_path, family, adapter, monkeypatch):
    thinker = build(tmp_path, family, adapter)
    thinker.save_pretrained(tmp_path / "checkpoint")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(outputs(thinker), outputs(Reasoner.from_pretrained(tmp_path / "checkpoint")))


def test_training_continues_as_if_never_saved(saved):
    thinker, folder = saved
    loaded = Reasoner.from_pretrained(folder)
    assert_same(outputs(learn(thinker, 2)), outputs(learn(loaded, 2)))


@pytest.mark.parametrize("method", [m for m in registry.names("methods") if m != "kava"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_other_methods_too(tmp_path, method, adapter):
    thinker = build(tmp_path, "llama", adapter, method)
    thinker.save_pretrained(tmp_path / "run" / "checkpoint")
    loaded = Reasoner.from_pretrained(tmp_path / "run")  # a run folder stands for its checkpoint
    assert_same(without_training_modules(outputs(thinker)), outputs(loaded))


def without_training_modules(found):
    """Outputs without the terms of modules that only a training has, and that are not loaded."""
    terms, ids = found
    if "step_ce" in terms:  # of the decoder of simcot
        terms = {name: value for name, value in terms.items() if name not in ("step_ce", "loss")}
    return terms, ids


def test_a_methods_own_weights_are_part_of_the_checkpoint(tmp_path):
    kv = {"weight": 1.3, "projection": "linear_layernorm"}
    backbone = str(store(tmp_path / "backbone"))
    changes = {"backbone": backbone, "kv": kv, **ADAPTERS["lora"]}
    thinker = learn(Reasoner.build(recipe("kava", **changes)), 2).eval()
    thinker.save_pretrained(tmp_path / "checkpoint")
    loaded = Reasoner.from_pretrained(tmp_path / "checkpoint")
    assert_same(outputs(thinker), outputs(loaded))
    for name, weight in thinker.method_modules.state_dict().items():
        assert torch.equal(loaded.method_modules.state_dict()[name], weight)
    file = tmp_path / "checkpoint" / "kava.safetensors"
    edit_weights(file, lambda w: w.pop("method_modules.kv_projection.layers.0.0.0.weight"))
    found = refuses(tmp_path / "checkpoint", "reasoning.weight-missing")
    assert found.key.startswith("method_modules.kv_projection")


def test_saved_again_it_is_the_same_folder(saved, tmp_path):
    thinker, folder = saved
    Reasoner.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert_same(outputs(thinker), outputs(Reasoner.from_pretrained(tmp_path / "again")))


def test_saving_replaces_and_leaves_nothing_half_written(saved):
    thinker, folder = saved
    learn(thinker, 1).save_pretrained(folder)
    assert_same(outputs(thinker), outputs(Reasoner.from_pretrained(folder)))
    assert not list(folder.parent.glob("*.partial"))


def test_a_checkpoint_can_be_moved(saved):
    thinker, folder = saved
    moved = folder.rename(folder.parent / "moved")
    assert_same(outputs(thinker), outputs(Reasoner.from_pretrained(moved)))


def test_the_backbone_of_an_adapter_may_have_moved(adapted, tmp_path):
    before = outputs(Reasoner.from_pretrained(adapted))
    there = (tmp_path / "backbone").rename(tmp_path / "there")
    name = json.loads((adapted / "kava.json").read_text())["backbone"]["name"]
    refuses(adapted, "reasoning.backbone-not-had", name, name, "--backbone FOLDER")
    assert_same(before, outputs(Reasoner.from_pretrained(adapted, backbone=str(there))))


def test_a_backbone_given_relatively_is_found_from_elsewhere(tmp_path, monkeypatch):
    store(tmp_path / "backbone")
    monkeypatch.chdir(tmp_path)
    thinker = Reasoner.build(recipe(**{**lora(), "backbone": "./backbone"})).eval()
    thinker.save_pretrained("checkpoint")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert_same(outputs(thinker), outputs(Reasoner.from_pretrained("../checkpoint")))


def test_only_a_backbone_of_the_hub_is_a_base_model_there(saved):
    reasoner, folder = saved
    for name, revision, told in (("runs/mine", None, False), ("meta/Llama", "0" * 40, True)):
        reasoner.identity = {**reasoner.identity, "name": name, "revision": revision}
        reasoner.save_pretrained(folder)
        head = (folder / "README.md").read_text().split("---")[1]
        assert (f"base_model: {name}" in head) == told
        if reasoner.recipe.adapter == "lora":
            peft = json.loads((folder / "adapter" / "adapter_config.json").read_text())
            assert peft["base_model_name_or_path"] == name
    assert [file.parent for file in folder.rglob("README.md")] == [folder]


def test_loaded_it_runs_our_attention_and_is_in_evaluation_mode(saved):
    loaded = Reasoner.from_pretrained(saved[1])
    assert loaded.lm.config._attn_implementation == "kava"
    assert not any(module.training for module in loaded.modules())


def test_a_backbone_is_read_once(saved, monkeypatch):
    read, load_model = [], loading.load_model
    monkeypatch.setattr(
        loading, "load_model", lambda *given: read.append(given) or load_model(*given)
    )
    Reasoner.from_pretrained(saved[1])
    assert len(read) == 1


def test_special_tokens_stay_what_they_are(saved):
    thinker, folder = saved
    loaded = Reasoner.from_pretrained(folder)
    assert len(loaded.tokenizer) == len(thinker.tokenizer)
    for token in SPECIAL_TOKENS.values():
        ids = [t.convert_tokens_to_ids(token) for t in (thinker.tokenizer, loaded.tokenizer)]
        assert ids[0] == ids[1] >= thinker.lm.config.vocab_size
    text = "w1 <bot> </s> w2"
    assert loaded.encoder.question(text) == thinker.encoder.question(text)


def test_the_recipe_comes_back(saved):
    assert Reasoner.from_pretrained(saved[1]).recipe == saved[0].recipe
    assert load_resolved(saved[1] / "recipe.yaml") == saved[0].recipe


# -- another dtype -------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_in_another_dtype_it_is_the_model_with_its_backbone_rounded(tmp_path, family, adapter):
    build(tmp_path, family, adapter).save_pretrained(tmp_path / "checkpoint")
    loaded = Reasoner.from_pretrained(tmp_path / "checkpoint", dtype=torch.bfloat16)
    rounded = Reasoner.from_pretrained(tmp_path / "checkpoint", dtype="auto")
    assert rounded.lm.dtype == torch.float32
    for weight in backbone_parameters(rounded.backbone):
        weight.data = weight.data.to(torch.bfloat16)
    assert_same(outputs(rounded), outputs(loaded))
    backbone = {id(weight) for weight in backbone_parameters(loaded.backbone)}
    for weight in loaded.parameters():
        assert weight.dtype == (torch.bfloat16 if id(weight) in backbone else torch.float32)
    frequencies = [b for name, b in loaded.named_buffers() if "inv_freq" in name]
    assert {buffer.dtype for buffer in frequencies} <= {torch.float32}
    loaded.save_pretrained(tmp_path / "again")
    again = Reasoner.from_pretrained(tmp_path / "again", dtype="bfloat16")
    assert_same(outputs(loaded), outputs(again))


def test_where_nothing_else_is_rounded_it_answers_as_that_to_does(tmp_path):
    plain = str(store(tmp_path / "plain", "gpt2"))
    loaded = Reasoner.from_backbone(plain, dtype="bfloat16")
    assert_same(outputs(Reasoner.from_backbone(plain).to(torch.bfloat16)), outputs(loaded))


@pytest.mark.parametrize("dtype", ("float16", torch.float16, "bf16", torch.int8, 16))
def test_a_dtype_that_is_not_possible(saved, dtype):
    refuses(saved[1], "backbones.bad-dtype", "dtype", f"dtype {dtype!r}", "'bfloat16'", dtype=dtype)
    with refused("backbones.bad-dtype", "dtype"):
        Reasoner.from_backbone("nowhere", dtype=dtype)


# -- errors that name the thing ------------------------------------------------------------------


def refuses(folder, code, key=None, *values, **options):
    """The folder is refused, with these values in the message; returns the error."""
    with refused(code, key) as caught:
        Reasoner.from_pretrained(folder, **options)
    for value in values:
        assert value in str(caught.value)
    return caught.value


def edit_weights(file, change):
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def edit_json(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_missing_row_of_the_new_embeddings(saved, token):
    edit_weights(saved[1] / "kava.safetensors", lambda w: w.pop(f"special_tokens.{token}"))
    key = f"special_tokens.{token}"
    refuses(saved[1], "reasoning.weight-missing", key, "kava.safetensors")


def test_a_missing_part_of_the_projection(saved):
    edit_weights(saved[1] / "kava.safetensors", lambda w: w.pop("projection.layers.2.weight"))
    key = "projection.layers.2.weight"
    refuses(saved[1], "reasoning.weight-missing", key, "kava.safetensors")


def test_a_weight_of_another_shape(saved):
    edit_weights(
        saved[1] / "kava.safetensors", lambda w: w.update({"special_tokens.bot": torch.zeros(7)})
    )
    refuses(saved[1], "reasoning.weight-shape", "special_tokens.bot", "(7,)", "(32,)")


def test_a_weight_left_over(saved):
    edit_weights(saved[1] / "kava.safetensors", lambda w: w.update(extra=torch.zeros(2)))
    refuses(saved[1], "reasoning.weight-unknown", "extra", "kava.safetensors", "'extra'")


@pytest.mark.parametrize("change", ("missing", "left over", "shape"))
def test_adapter_weights_must_fit(adapted, change):
    def edit(weights):
        name = next(n for n in weights if "lora_A" in n)
        weight = weights[name]
        if change == "missing":
            del weights[name]
        elif change == "shape":
            weights[name] = torch.zeros(1, *weight.shape[1:])
        else:
            weights["base_model.foreign.lora_A.weight"] = weight.clone()

    edit_weights(adapted / "adapter" / "adapter_model.safetensors", edit)
    codes = {"missing": "weight-missing", "left over": "weight-unknown", "shape": "weight-shape"}
    found = refuses(adapted, f"reasoning.{codes[change]}", None, "adapter_model.safetensors")
    assert "lora_A" in found.key and ("foreign" in found.key) is (change == "left over")


def test_backbone_weights_must_fit(full):
    edit_weights(full / "backbone" / "model.safetensors", lambda w: w.pop("model.norm.weight"))
    folder = str(full / "backbone")
    refuses(full, "backbones.other-weights", folder, "missing_keys", "model.norm.weight")


@pytest.mark.parametrize(
    "family,seed,word", (("llama", 1, "fingerprint"), ("qwen2", 0, "model_type"))
)
def test_a_wrong_backbone(adapted, tmp_path, family, seed, word):
    other = store(tmp_path / "other", family, seed)
    refuses(adapted, "reasoning.other-backbone", str(other), word, backbone=str(other))


def tampered(folder):
    """Change a weight that the fingerprint does not look at."""

    def edit(weights):
        weights["model.embed_tokens.weight"][-1, -1] += 1

    edit_weights(folder / "model.safetensors", edit)


def test_the_files_of_a_backbone_are_recorded_and_compared(adapted, tmp_path):
    described = json.loads((adapted / "kava.json").read_text())["backbone"]
    folder = Path(shutil.copytree(described["name"], tmp_path / "copy"))
    weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    tokens = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert described["files"]["model.safetensors"] == weights
    assert described["files"]["tokenizer.json"] == tokens
    Reasoner.from_pretrained(adapted, backbone=str(folder))
    tampered(folder)
    now = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert now != weights
    refuses(adapted, "reasoning.other-backbone", str(folder), weights, now, backbone=str(folder))


def test_checkpoints_without_hashes_still_load(adapted, tmp_path):
    file = adapted / "kava.json"
    described = json.loads(file.read_text())
    folder = Path(shutil.copytree(described["backbone"]["name"], tmp_path / "copy"))
    tampered(folder)
    del described["backbone"]["files"]
    file.write_text(json.dumps(described))
    Reasoner.from_pretrained(adapted, backbone=str(folder))


def test_a_file_is_hashed_once_until_it_changes(tmp_path, monkeypatch):
    file, read = tmp_path / "a.safetensors", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: read.append(1) or digest(*given))
    for content in (b"1", b"1", b"22"):
        if not file.exists() or file.read_bytes() != content:
            file.write_bytes(content)
        assert sha256(file) == hashlib.sha256(content).hexdigest()
    assert len(read) == 2


def test_a_tokenizer_of_another_size(saved):
    thinker, folder = saved
    size = len(thinker.tokenizer)
    thinker.tokenizer.add_tokens(["new"])
    thinker.tokenizer.save_pretrained(folder)
    refuses(folder, "reasoning.other-tokenizer", str(folder), str(size), str(size + 1))


@pytest.mark.parametrize("name", ("kava.safetensors", "recipe.yaml"))
def test_a_missing_file(saved, name):
    (saved[1] / name).unlink()
    refuses(saved[1], "reasoning.file-missing", str(saved[1] / name))


def test_missing_tokenizer_files(saved):
    for file in saved[1].glob("tokenizer*"):
        file.unlink()
    refuses(saved[1], "backbones.no-tokenizer", str(saved[1]))


def test_a_missing_adapter_file(adapted):
    (adapted / "adapter" / "adapter_model.safetensors").unlink()
    file = adapted / "adapter" / "adapter_model.safetensors"
    refuses(adapted, "reasoning.file-missing", str(file))


def test_a_missing_backbone_file(full):
    (full / "backbone" / "model.safetensors").unlink()
    refuses(full, "backbones.unusable", str(full / "backbone"))


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def test_truncated_weights(saved):
    truncate(saved[1] / "kava.safetensors")
    refuses(saved[1], "reasoning.damaged", str(saved[1] / "kava.safetensors"))


def test_truncated_adapter(adapted):
    truncate(adapted / "adapter" / "adapter_model.safetensors")
    file = adapted / "adapter" / "adapter_model.safetensors"
    refuses(adapted, "reasoning.damaged", str(file))


def test_truncated_backbone(full):
    truncate(full / "backbone" / "model.safetensors")
    refuses(full, "backbones.unusable", str(full / "backbone"))


def test_another_format(saved):
    edit_json(saved[1] / "kava.json", format=99)
    refuses(saved[1], "reasoning.other-format", str(saved[1] / "kava.json"), "99", "1")


@pytest.mark.parametrize(
    "text,code,key",
    (
        ("{", "reasoning.unreadable", None), ("[]", "reasoning.other-format", None),
        ('{"format": 1}', "reasoning.missing-key", "backbone"),
        ("\x00", "reasoning.unreadable", None),
    ),
)  # fmt: skip
def test_a_description_that_is_none(saved, text, code, key):
    (saved[1] / "kava.json").write_text(text)
    refuses(saved[1], code, key or str(saved[1] / "kava.json"), "kava.json")


def test_not_a_checkpoint(tmp_path):
    refuses(tmp_path, "reasoning.no-checkpoint", str(tmp_path))
    nowhere = str(tmp_path / "nowhere")
    refuses(nowhere, "system.no-such-file", nowhere)
