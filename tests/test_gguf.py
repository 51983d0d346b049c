"""A GGUF file as a backbone: its weights and words, its hash, and what is refused.

The file is written here, by the package gguf, from a tiny model; llama.cpp interleaves the rows of
each head of q and k, so a reader that did not put them back would give other logits.
"""

import json
import shutil

import pytest
import torch
from refusals import refused
from rich.console import Console
from tiny import lora
from transformers import AutoModelForCausalLM, AutoTokenizer

from kava.backbones import gguf, loading
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Recipe
from kava.system.hashes import sha256
from kava.training.run import train_run

HEADS = {"q_proj": 4, "k_proj": 2}


def write(folder, file, more=(), **changes):
    """Write the llama of a folder as llama.cpp's converter does.

    `more` are further tensors, `changes` other values of config.json.
    """
    library = pytest.importorskip("gguf", reason="kava[gguf] is not installed")
    honest = json.loads((folder / "config.json").read_text())
    config = honest | changes
    words = json.loads((folder / "tokenizer.json").read_text())["model"]
    weights = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    names = library.get_tensor_name_map(library.MODEL_ARCH.LLAMA, honest["num_hidden_layers"])
    made = library.GGUFWriter(file, "llama")
    made.add_name("tiny")
    made.add_context_length(config["max_position_embeddings"])
    made.add_embedding_length(config["hidden_size"])
    made.add_block_count(config["num_hidden_layers"])
    made.add_feed_forward_length(config["intermediate_size"])
    made.add_head_count(config["num_attention_heads"])
    made.add_head_count_kv(config["num_key_value_heads"])
    made.add_layer_norm_rms_eps(config["rms_norm_eps"])
    made.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    made.add_tokenizer_model("gpt2")
    made.add_tokenizer_pre("default")
    made.add_token_list(sorted(words["vocab"], key=words["vocab"].get))
    made.add_token_merges([" ".join(pair) for pair in words["merges"]])
    for key in ("bos", "eos"):
        getattr(made, f"add_{key}_token_id")(config[f"{key}_token_id"])
    for name, weight in weights.items():
        for part, heads in HEADS.items():
            if f"{part}.weight" in name:
                rows = weight.view(heads, 2, -1, weight.shape[1])
                weight = rows.transpose(1, 2).reshape(weight.shape)
        module, _, kind = name.rpartition(".")
        made.add_tensor(f"{names.get_name(module)}.{kind}", weight.contiguous().numpy())
    for name, values in dict(more).items():
        made.add_tensor(name, values.numpy())
    made.write_header_to_file()
    made.write_kv_data_to_file()
    made.write_tensors_to_file()
    made.close()
    return file


@pytest.fixture(scope="module")
def file(backbone, tmp_path_factory):
    return write(backbone, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_file_has_the_weights_and_words_of_its_model(backbone, file):
    model, tokenizer, identity = loading.load(str(file), None, torch.float32)
    other, words, expected = loading.load(str(backbone), None, torch.float32)
    there = other.state_dict()
    assert model.state_dict().keys() == there.keys()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, there[name]), name
    assert identity["fingerprint"] == expected["fingerprint"]
    assert identity["name"] == str(file)
    assert words.get_vocab().items() <= tokenizer.get_vocab().items()
    text = "Ann has pens. The answer is:"  # the format has no rule for blanks before digits
    assert tokenizer(text).input_ids == words(text).input_ids
    assert tokenizer.eos_token_id == words.eos_token_id


def test_what_lies_beside_a_file_is_not_read(file, tmp_path):
    for other in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        (tmp_path / other).write_text('{"model_type": "gpt2", "bos_token": "<other>"}')
    alone = shutil.copy(file, tmp_path / "tiny.gguf")
    _, tokenizer, _ = loading.load(str(alone), None, torch.float32)
    assert tokenizer.bos_token == "<s>"


def test_a_run_on_a_file_is_trained_merged_and_loaded_by_transformers(file, tmp_path, kava):
    recipe = Recipe.model_validate({
        "method": "kava", "backbone": str(file), **lora(),
        "num_latents": 3, "num_iterations": 1,
        "data": {"train": "synthetic", "train_rows": 4},
        "train": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3},
    })  # fmt: skip
    run = tmp_path / "run"
    result = train_run(recipe, run, Console(quiet=True), device="cpu")
    assert result["backbone"]["files"] == {"model.gguf": sha256(file)}
    assert sha256(file) in (run / "checkpoint/README.md").read_text()
    status, _ = kava("ask", run, "Ann has 4 pens. How many?", "--max-new-tokens", "2")
    assert status == 0
    assert kava("export", run, "-o", tmp_path / "exported")[0] == 0
    AutoModelForCausalLM.from_pretrained(tmp_path / "exported")
    trained = Reasoner.from_pretrained(run)
    expected = trained.logits(torch.ones(1, 1, 32))
    trained.merge().save_pretrained(tmp_path / "merged")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "merged/backbone")
    AutoTokenizer.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(lm.lm_head(torch.ones(1, 1, 32)), expected)

    changed = write_changed(file, tmp_path / "other.gguf")
    with refused("reasoning.other-backbone"):
        Reasoner.from_pretrained(run, str(changed))


def write_changed(file, to):
    """The same file, but for a bit of a weight that is in no sample of weights."""
    whole = bytearray(file.read_bytes())
    whole[-1] ^= 1
    to.write_bytes(whole)
    return to


def test_rotary_frequencies_that_would_be_left_out_are_refused(backbone, tmp_path):
    scaled = write(backbone, tmp_path / "scaled.gguf", {"rope_freqs.weight": torch.ones(4)})
    with refused("backbones.gguf-not-whole", str(scaled)) as told:
        loading.load_model(scaled, torch.float32)
    assert "rope_freqs.weight" in str(told.value)


def test_without_the_extra_it_is_named(tmp_path, monkeypatch, kava):
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(gguf, "find_spec", lambda name: None)
    status, said = kava("ask", "--backbone", tmp_path / "tiny.gguf", "question")
    assert (status, said.code) == (2, "backbones.gguf-not-installed")
    assert said.count("\n") == 1 and "[gguf]" in said


def test_a_file_that_is_not_there_is_not_looked_for_on_the_hub():
    with refused("reasoning.not-had", "models/none.gguf"):
        open_reasoner("models/none.gguf")


@pytest.mark.parametrize("left", (0, 8, 1000, -8))
def test_a_broken_file_is_one_line(file, tmp_path, left, kava):
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[:left])
    status, said = kava("ask", "--backbone", tmp_path / "cut.gguf", "question")
    assert (status, said.code, said.count("\n")) == (2, "backbones.unusable", 1)


@pytest.mark.parametrize(
    "changes", [{"num_hidden_layers": 100_000}, {"hidden_size": 1_000_000_000}], ids=str
)
def test_metadata_that_ask_for_more_than_the_tensors_are_refused(backbone, tmp_path, changes):
    hostile = write(backbone, tmp_path / "hostile.gguf", **changes)
    with refused("backbones.config-mismatch"):
        loading.load_model(hostile, torch.float32)
