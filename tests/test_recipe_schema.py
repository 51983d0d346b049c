"""The JSON schema with which editors check recipes: what the loader takes, no editor marks."""

import json
import os
from pathlib import Path

import jsonschema
import pytest
import tiny
import yaml

from kava.reasoning.resolve import load_resolved, recipe_schema
from kava.recipe import registry
from kava.recipe.load import load_recipe, read
from kava.recipe.schema import BackboneRecipe, Recipe, dump
from kava.sweeps import recipes

SCHEMA = recipe_schema()
CHECK = jsonschema.Draft202012Validator(SCHEMA)
ENTRIES = recipes.entries()
ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference" / "recipe.schema.json"
GIVEN = """
method: {method}
backbone: somewhere
data: {{train: rows.jsonl}}
train: {{steps: 10, learning_rate: 1e-4}}
"""
ARCHITECTURE = """
name: small
architecture: {hidden_size: 8, intermediate_size: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1}
data: {train: rows.jsonl}
train: {steps: 10, learning_rate: 1e-4}
"""


def wrong(text):
    """Keys that an editor marks."""
    return [".".join(map(str, e.absolute_path)) for e in CHECK.iter_errors(yaml.safe_load(text))]


def test_the_schema_is_one_of_its_draft():
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]


def test_the_command_prints_it(kava):
    status, printed = kava("recipes", "schema")
    assert status == 0 and json.loads(printed) == SCHEMA


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_a_shipped_recipe_is_valid_as_it_is_and_with_what_it_extends(entry):
    assert not wrong(entry.file.read_text(encoding="utf-8"))
    assert not list(CHECK.iter_errors(read(entry.file)))


@pytest.mark.skipif(not PAGE.is_file(), reason="part of a checkout only")
@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.path)
def test_its_first_line_names_the_schema(entry):
    first = entry.file.read_text(encoding="utf-8").partition("\n")[0]
    named = first.removeprefix("# yaml-language-server: $schema=")
    assert named != first and not named.startswith("/")
    assert os.path.samefile(entry.file.parent / named, PAGE)
    assert "yaml-language" not in entry.about


@pytest.mark.parametrize("method", registry.names("methods"))
def test_a_recipe_with_every_default_written_out_is_valid(method):
    assert not wrong(dump(tiny.recipe(method)))


@pytest.mark.parametrize(
    "more",
    (
        "seed: 60_000",
        "seed: 0x10",
        "num_latents: '8'",
        "num_latents: 8.0",
        "tolerance: 5e-3",
        "tolerance: .5",
        "drop_last_step: yes",
        "drop_last_step: 'off'",
        "drop_last_step: 1",
        "random_iterations: [1, '8']",
        "kv: {eviction: {lambda: 0.5}}",
        "kv: {eviction: {lam: 0.5}}",
        "lora: {targets: all-linear}",
        "lora: {targets: [q_proj]}",
        "data: {train: rows.jsonl, options: {question: task, file: [a, b]}, leak_check: [gsm8k]}",
        "eval: {every: null}",
        "resources: {memory_gb: 1e2}",
    ),
)
def test_what_the_loader_takes_is_valid(tmp_path, more):
    text = GIVEN.format(method="kava") + more + "\n"
    text = "\n".join({line.partition(":")[0]: line for line in text.splitlines()}.values())
    file = tmp_path / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    load_resolved(file)
    assert not wrong(text)


def test_the_options_are_those_of_the_method():
    coconut = GIVEN.format(method="coconut")
    assert not wrong(coconut + "method_options: {max_stage: 2, epochs_per_stage: '3'}")
    assert wrong(coconut + "method_options: {max_stag: 2}") == ["method_options"]
    assert wrong(GIVEN.format(method="kava") + "method_options: {max_stage: 2}")


@pytest.mark.parametrize(
    ("more", "key"),
    (
        ("num_latent: 8", ""),
        ("num_latents: 0", "num_latents"),
        ("num_latents: eight", "num_latents"),
        ("drop_last_step: maybe", "drop_last_step"),
        ("drop_last_step: 2", "drop_last_step"),
        ("kv: {eviction: rkv}", "kv.eviction"),
        ("kv: {eviction: {name: rkw}}", "kv.eviction.name"),
        ("lora: {rank: 8}", "lora"),
    ),
)
def test_a_mistake_is_marked_where_it_is(more, key):
    assert wrong(GIVEN.format(method="kava") + more) == [key]


def test_an_unknown_method_is_marked():
    assert wrong(GIVEN.format(method="kva")) == ["method"]


def test_a_key_that_must_be_given_may_be_in_what_is_extended(tmp_path):
    extending = "extends: base.yaml\nmethod: pccot\ntrain: {learning_rate: 1e-3}\n"
    (tmp_path / "base.yaml").write_text(GIVEN.format(method="kava"), encoding="utf-8")
    (tmp_path / "over.yaml").write_text(extending, encoding="utf-8")
    load_recipe(tmp_path / "over.yaml", kind=Recipe)
    assert not wrong(extending)
    alone = wrong(extending.replace("extends: base.yaml\n", ""))
    assert alone == ["", ""], "backbone and data"
    assert wrong(GIVEN.format(method="kava").replace("learning_rate: 1e-4", "clip: 1")) == ["train"]


def test_a_backbone_recipe_has_its_own_keys(tmp_path):
    (tmp_path / "backbone.yaml").write_text(ARCHITECTURE, encoding="utf-8")
    load_recipe(tmp_path / "backbone.yaml", kind=BackboneRecipe)
    assert not wrong(ARCHITECTURE)
    assert wrong(ARCHITECTURE + "num_latents: 3") == [""]
    assert wrong(ARCHITECTURE.replace("num_heads: 1, ", "")) == ["architecture"]
