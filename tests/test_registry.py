"""A file in a folder is a name; an unknown one gets a hint; others may add their own."""

import pytest
import torch
from refusals import refused
from tiny import batch, example, reasoner

import kava.reasoning.evictions
from kava.reasoning.evictions import Eviction
from kava.reasoning.methods import Method
from kava.recipe import registry


@pytest.fixture(autouse=True)
def _forget(monkeypatch):
    monkeypatch.setattr(registry, "_outside", {})


class KeepLast(Eviction):
    """The mirror of crop_right."""

    def score(self, scored):
        batch, heads, columns, _ = scored.keys.shape
        return torch.arange(columns).float().expand(batch, heads, columns)


def test_names_are_the_files_of_the_folder():
    assert {"cot", "no_cot", "pccot", "kava"} <= set(registry.names("methods"))
    assert {"rkv", "cosine", "attention", "crop_right", "random", "full"} <= set(
        registry.names("evictions")
    )
    assert not any(n.startswith("_") for f in ("methods", "evictions") for n in registry.names(f))


@pytest.mark.parametrize("folder,base", (("methods", Method), ("evictions", Eviction)))
def test_every_name_stands_for_a_class_of_its_folder(folder, base):
    assert all(issubclass(registry.find(folder, name), base) for name in registry.names(folder))


@pytest.mark.parametrize(
    "folder,wrong,right",
    (("methods", "kavva", "kava"), ("methods", "nocot", "no_cot"), ("evictions", "rvk", "rkv")),
)
def test_an_unknown_name_gets_a_hint(folder, wrong, right):
    with refused("recipe.unknown-name", wrong) as caught:
        registry.find(folder, wrong)
    assert str(caught.value) == f"unknown {folder[:-1]} '{wrong}'; did you mean '{right}'?"


def test_an_unknown_name_like_no_other_lists_what_is_known():
    with refused("recipe.unknown-name", "xyz") as caught:
        registry.find("methods", "xyz")
    assert "cot, kava, " in str(caught.value)


@pytest.mark.parametrize(
    "changes,wrong,right",
    (({"method": "kavva"}, "kavva", "kava"), ({"kv": {"eviction": {"name": "rvk"}}}, "rvk", "rkv")),
)
def test_a_recipe_with_an_unknown_name_is_refused(changes, wrong, right):
    with refused("recipe.unknown-name", wrong) as caught:
        reasoner(**changes)
    assert f"'{right}'?" in str(caught.value)


def test_a_private_file_is_not_a_name():
    with refused("recipe.unknown-name", "_base"):
        registry.find("evictions", "_base")


def test_a_class_from_outside_works_like_the_others():
    registry.register("evictions", "keep_last", KeepLast)
    assert registry.find("evictions", "keep_last") is KeepLast
    assert "keep_last" in registry.names("evictions")
    thinker = reasoner(kv={"weight": 1.0, "eviction": {"name": "keep_last"}})
    terms = thinker(**batch(thinker, [example(3, 8)]))
    other = reasoner(kv={"weight": 1.0, "eviction": {"name": "crop_right"}})
    assert terms["kv"] != other(**batch(other, [example(3, 8)]))["kv"]


@pytest.mark.parametrize("name", ("rkv", "keep_last"))
def test_a_taken_name_is_refused(name):
    registry.register("evictions", "keep_last", KeepLast)
    with refused("recipe.name-taken", name):
        registry.register("evictions", name, KeepLast)
    assert registry.find("evictions", "rkv") is not KeepLast


def test_a_new_file_is_found_without_any_edit(tmp_path, monkeypatch):
    (tmp_path / "from_a_file.py").write_text(
        "from kava.reasoning.evictions.random import Random\nIMPLEMENTATION = Random\n"
    )
    monkeypatch.setattr(
        kava.reasoning.evictions, "__path__", [*kava.reasoning.evictions.__path__, str(tmp_path)]
    )
    assert "from_a_file" in registry.names("evictions")
    assert issubclass(registry.find("evictions", "from_a_file"), Eviction)
