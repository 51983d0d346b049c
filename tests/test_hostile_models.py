"""Files of a model that ask for too much: refused before anything is built, in one line."""

import json
import time

import pytest
import torch
from refusals import refused
from safetensors.torch import load_file, save_file
from tiny import bare, recipe, tokenizer
from tokenizers import Regex, normalizers, pre_tokenizers

from kava.backbones import encode, headers, loading, pretrained
from kava.reasoning.reasoner import Reasoner


@pytest.fixture
def folder(tmp_path):
    """A backbone of two layers with its tokenizer; its head is tied."""
    bare("llama").save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    return tmp_path


def rewrite(folder, **settings):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.fixture
def nothing_built(monkeypatch):
    """transformers may not read the weights."""
    monkeypatch.setattr(pretrained, "load_model", lambda *_, **__: pytest.fail("a model was built"))


# -- config.json against the headers -------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 100_000), ("num_hidden_layers", 10**9), ("num_hidden_layers", 3),
        ("vocab_size", 10**9), ("vocab_size", 54), ("hidden_size", 64 * 10**6),
        ("intermediate_size", 10**10), ("tie_word_embeddings", False),
    ],
)  # fmt: skip
def test_a_config_is_compared_with_the_headers(folder, nothing_built, key, value):
    rewrite(folder, **{key: value})
    with refused("backbones.config-mismatch", key) as caught:
        loading.load_model(folder, torch.float32)
    told = str(caught.value)
    assert told.startswith(f"{folder / 'config.json'}: {key} is ") and "\n" not in told
    assert (f"{value:,}" if value else "false") in told


def test_both_values_are_told(folder):
    rewrite(folder, num_hidden_layers=7)
    with refused("backbones.config-mismatch") as caught:
        loading.load_model(folder, torch.float32)
    assert "is 7, but the weights in model.safetensors have 2 layers" in str(caught.value)
    rewrite(folder, num_hidden_layers=2, vocab_size=10**9)
    with refused("backbones.config-mismatch") as caught:
        loading.load_model(folder, torch.float32)
    assert "1,000,000,000" in str(caught.value) and "(55, 32)" in str(caught.value)


def test_names_of_layers_alone_make_no_deep_model(folder, nothing_built):
    """A header may name more layers than any model has; its tensors may be empty."""
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2000.self_attn.q_proj.weight"] = torch.zeros(0)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, num_hidden_layers=2001)
    with refused("backbones.config-mismatch", "num_hidden_layers") as caught:
        loading.load_model(folder, torch.float32)
    assert f"at most {headers.LAYERS:,} layers" in str(caught.value)


def test_weights_that_are_not_compared_by_name_may_not_be_larger_than_the_files(
    folder, nothing_built
):
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("_proj", "_other"): weight for name, weight in weights.items()}
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
    rewrite(folder, intermediate_size=10**10)
    with refused("backbones.config-mismatch", str(folder / "config.json")):
        loading.load_model(folder, torch.float32)


def test_without_weights_no_list_of_layers_is_made(folder, nothing_built):
    (folder / "model.safetensors").unlink()
    rewrite(folder, num_hidden_layers=10**12)
    with refused("backbones.config-mismatch", "num_hidden_layers"):
        loading.load_model(folder, torch.float32)


def test_shards_are_read_like_a_single_file(folder):
    whole = headers.read(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    parts = {"a.safetensors": names[:5], "b.safetensors": names[5:]}
    for file, part in parts.items():
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = headers.read(folder)
    assert {n: s.shape for n, s in found.items()} == {n: s.shape for n, s in whole.items()}
    assert loading.load_model(folder, torch.float32) is not None


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../model.safetensors", "backbones.bad-index"), ("/etc/passwd", "backbones.bad-index"),
        ("..", "backbones.bad-index"), (7, "backbones.bad-shard-index"),
    ],
)  # fmt: skip
def test_an_index_names_only_files_beside_it(folder, name, code):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    file = folder / "model.safetensors.index.json"
    file.write_text(json.dumps({"weight_map": {"model.norm.weight": name}}))
    with refused(code, str(file)):
        headers.read(folder)


def test_a_header_that_is_longer_than_its_file(folder):
    (folder / "model.safetensors").write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    with refused("backbones.unusable", str(folder)):
        loading.load_model(folder, torch.float32)


def test_pickled_weights_are_not_read(folder):
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    with refused("backbones.unusable", str(folder)) as caught:
        loading.load_model(folder, torch.float32)
    assert "safetensors" in str(caught.value)


def test_a_json_file_of_any_size_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(pretrained, "JSON_BYTES", 10_000)
    with (folder / "tokenizer.json").open("a") as file:
        file.write(" " * 10_001)
    for load in (loading.load_tokenizer, lambda f: loading.load_model(f, torch.float32)):
        with refused("backbones.file-too-large", str(folder / "tokenizer.json")):
            load(folder)


# -- patterns of tokenizers ----------------------------------------------------------------------


def plant(folder, pattern, normalizer=False):
    """Save a tokenizer that splits, or replaces, by a pattern."""
    planted = tokenizer()
    inner = planted.backend_tokenizer
    if normalizer:
        inner.normalizer = normalizers.Replace(Regex(pattern), "x")
    else:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.Whitespace()])
    planted.save_pretrained(folder)


@pytest.mark.parametrize(("pattern", "normalizer"), [(r"(a+)+$", False), (r"([0-9,]+)*$", True)])
def test_a_catastrophic_pattern_is_refused_when_it_is_loaded(folder, pattern, normalizer):
    """The library panics, which is no Exception."""
    plant(folder, pattern, normalizer)
    with refused("backbones.tokenizer-pattern", str(folder)) as caught:
        loading.load_tokenizer(folder)
    assert "panicked" in str(caught.value) and "\n" not in str(caught.value)


def test_a_pattern_that_fails_later_is_one_line(folder, kava):
    plant(folder, r"(?:w7|w7w7)+$")
    status, said = kava("ask", str(folder), "w7" * 60 + "w1")
    assert (status, said.code) == (2, "backbones.tokenizer-pattern")
    assert "Traceback" not in said


def test_a_pattern_that_takes_forever_is_given_up(folder, monkeypatch):
    plant(folder, r"w7*7*7*[^7!]")
    thinker = Reasoner.build(recipe("cot", backbone=str(folder)))
    monkeypatch.setattr(encode, "SECONDS", 0.02)
    monkeypatch.setattr(encode, "SECONDS_PER_CHARACTER", 0.0)
    begin = time.monotonic()
    with refused("backbones.tokenizer-pattern") as caught:
        thinker.encoder.question(("w" + "7" * 120 + "!") * 40)
    assert "took longer than" in str(caught.value) and time.monotonic() - begin < 5


def test_what_the_tokenizer_raises_itself_is_raised(folder):
    with pytest.raises(ZeroDivisionError):
        encode.encode(lambda *_, **__: 1 / 0, ["w1"])


def test_interrupts_are_no_panics():
    with pytest.raises(KeyboardInterrupt), encode.catching_panics():
        raise KeyboardInterrupt
