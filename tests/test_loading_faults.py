"""Faults of a model's folder that users meet: one line that names the file and what to do."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from refusals import refused
from rich.console import Console
from safetensors.torch import load_file, save_file
from tiny import bare
from transformers import AutoConfig, AutoModelForCausalLM

from kava.backbones import faults, headers, loading
from kava.backbones import lora as adapters
from kava.recipe.schema import Recipe
from kava.system.progress import no_bars
from kava.training.run import train_run

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 538090408\n"


@pytest.fixture
def folder(backbone, tmp_path):
    return shutil.copytree(backbone, tmp_path / "model")


@pytest.fixture
def asked(kava):
    """`kava ask --backbone PLACE`: refused in one line, which is returned."""

    def ask(place, code, key=None):
        status, said = kava("ask", "--backbone", place, "question")
        assert (status, said.code) == (2, code), said
        assert said.key == str(key or place) and said.count("\n") == 1
        return said

    return ask


@pytest.mark.parametrize("file", ("model.safetensors", "tokenizer.json", "config.json"))
def test_a_git_lfs_pointer_in_place_of_a_file(file, folder, asked):
    (folder / file).write_text(POINTER)
    assert "git lfs pull" in asked(folder, "backbones.lfs-pointer", folder / file)


@pytest.mark.parametrize("prefix", ("_orig_mod.", "module.", "base_model.model.", "mine."))
def test_a_prefix_of_all_names_is_named_and_names_are_counted(prefix, folder, asked):
    file = folder / "model.safetensors"
    weights = load_file(file)
    save_file({prefix + name: w for name, w in weights.items()}, file, metadata={"format": "pt"})
    said = asked(folder, "backbones.other-weights")
    assert f"'{prefix}'" in said and len(said) < 1000
    assert f"missing_keys: {len(weights)}" in said
    assert f"unexpected_keys: {len(weights)}" in said


def test_other_weights_have_no_common_prefix():
    one, more = ["model.a.weight", "model.b.weight"], ["x.model.a.weight", "y.weight"]
    error = faults.other_weights("F", {"missing_keys": one, "unexpected_keys": more})
    assert "prefix" not in str(error) and "y.weight" in str(error)
    assert "prefix" not in str(faults.other_weights("F", {"missing_keys": one}))


@pytest.fixture
def sharded(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    return folder


def test_shards_with_their_index_load(sharded):
    loading.load_model(sharded, torch.float32)


def test_shards_without_their_index(sharded, asked):
    (sharded / headers.INDEX_FILE).unlink()
    assert headers.INDEX_FILE in asked(
        sharded, "backbones.no-shard-index", sharded / headers.INDEX_FILE
    )


def test_a_shard_that_is_missing(sharded, asked):
    lost = sorted(sharded.glob("model-*.safetensors"))[1]
    lost.unlink()
    assert lost.name in asked(sharded, "backbones.shard-missing", sharded / headers.INDEX_FILE)


def test_a_shard_elsewhere_is_not_read(sharded, asked):
    index = sharded / headers.INDEX_FILE
    said = json.loads(index.read_text())
    moved = shutil.move(sorted(sharded.glob("model-*.safetensors"))[0], sharded.parent)
    name = moved.rpartition("/")[2]
    for weight, file in said["weight_map"].items():
        said["weight_map"][weight] = f"../{file}" if file == name else file
    index.write_text(json.dumps(said))
    assert f"../{name}" in asked(sharded, "backbones.shard-missing", index)


def test_an_index_of_an_older_model(sharded, asked):
    index = sharded / headers.INDEX_FILE
    said = json.loads(index.read_text())
    said["weight_map"]["model.layers.9.weight"] = said["weight_map"].pop("model.norm.weight")
    index.write_text(json.dumps(said))
    told = asked(sharded, "backbones.stale-shard-index", index)
    assert "2 weights" in told and "model.layers.9.weight" in told


@pytest.mark.parametrize("text", ("[1]", "{", '{"weight_map": {"a": 1}}', '{"weight_map": 3}'))
def test_an_index_that_is_none(text, sharded, asked):
    (sharded / headers.INDEX_FILE).write_text(text)
    asked(sharded, "backbones.bad-shard-index", sharded / headers.INDEX_FILE)


def test_a_folder_of_the_hubs_cache(folder, tmp_path, asked):
    cache = tmp_path / "models--org--name"
    (cache / "snapshots").mkdir(parents=True)
    folder.rename(cache / "snapshots/abc123")
    said = asked(cache, "backbones.hub-cache-folder")
    assert str(cache / "snapshots/abc123") in said and "org/name" in said
    loading.load_model(cache / "snapshots/abc123", torch.float32)
    with refused("backbones.hub-cache-folder", str(cache)):  # as a recipe's backbone
        loading.load(str(cache), None, torch.float32)


def test_a_folder_with_only_an_adapter(tmp_path, asked):
    model = get_peft_model(bare("llama"), LoraConfig(r=2, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path)
    assert "merge" in asked(tmp_path, "backbones.is-adapter")


def test_a_folder_with_only_gguf(tmp_path, asked):
    for name in ("b.gguf", "a.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    said = asked(tmp_path, "backbones.gguf-folder")
    assert str(tmp_path / "a.gguf") in said and "2 GGUF files" in said


def test_a_tokenizer_without_an_end_of_sequence(folder, asked):
    file = folder / "tokenizer_config.json"
    said = json.loads(file.read_text())
    del said["eos_token"]
    file.write_text(json.dumps(said))
    told = asked(folder, "reasoning.no-eos", "eos_token")
    assert str(folder) in told and "tokenizer_config.json" in told


SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 512, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
MORE = {
    "gptj": {"n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 512},
    "gpt_neo": {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]]},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def save(family, folder):
    """A random model of a family in place of that of a folder."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SHAPE, **MORE.get(family, {})})
    with no_bars():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ("falcon", "gptj", "gpt_neo"))
def test_attention_that_transformers_lets_nobody_provide(family, folder, asked):
    assert "layer 0" in asked(save(family, folder), "backbones.no-attention", family)


@pytest.mark.parametrize(
    "family,targets",
    (
        ("gpt_neox", ["query_key_value"]),
        ("phi", ["q_proj", "v_proj", "fc1", "fc2"]),
        ("opt", ["q_proj", "v_proj"]),
        ("persimmon", "all-linear"),
        ("llama", adapters.USUAL_TARGETS),
    ),
)
def test_targets_that_no_recipe_names_are_those_of_peft_or_all(family, targets):
    config = AutoConfig.for_model(family, **{**SHAPE, **MORE.get(family, {})})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert adapters.default_targets(model) == targets


def test_such_targets_are_said_in_one_line(folder, tmp_path, capsys):
    recipe = Recipe.model_validate({
        "method": "no_cot", "backbone": str(save("gpt_neox", folder)), "adapter": "lora",
        "data": {"train": "synthetic", "train_rows": 4},
        "train": {"steps": 1, "batch_size": 2, "learning_rate": 1e-3},
    })  # fmt: skip
    train_run(recipe, tmp_path / "run", Console(width=200), device="cpu")
    (said,) = (line for line in capsys.readouterr().out.splitlines() if "lora.targets" in line)
    assert "gpt_neox" in said and "[query_key_value]" in said
    named = recipe.model_copy(
        update={"lora": recipe.lora.model_copy(update={"targets": ["dense"]})}
    )
    assert adapters.describe_default(named, named, "gpt_neox") == ""
