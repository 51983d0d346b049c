"""The shipped recipes: complete, short, sourced, running, and those of the paper's Table 6."""

import io
import re
import shutil
from pathlib import Path

import pytest
from refusals import refused
from rich.console import Console

from kava.data import data_sets
from kava.data.gsm8k_aug import NAMES
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.report import published
from kava.sweeps import recipes
from tools import paper

SETTINGS = [f"{b}_{d}" for b in ("llama1b", "llama3b", "qwen05b") for d in ("aug", "aug_nl")]
METHODS = [
    "coconut", "codi", "cot", "icot", "kava", "lotus", "mux", "no_cot", "pccot", "simcot",
]  # fmt: skip
FULL = {"adapter": "full", "train": {"micro_batch_size": 8}}
ABLATIONS = {  # the recipe that it extends, and what differs
    "without_codi": ("kava", {"codi": {"weight": 0}}),
    "without_kv": ("kava", {"kv": {"weight": 0}}),
    "without_projection": ("kava", {"projection": "none"}),
    "all_steps": ("kava", {"drop_last_step": False}),
    **{
        f"eviction_{name}": ("kava", {"kv": {"eviction": {"name": name}}})
        for name in ("cosine", "attention", "crop_right", "random")
    },
    **{f"latents_{m}": ("kava", {"num_latents": m}) for m in (6, 12, 48)},
    **{f"iterations_{t}": ("kava", {"num_iterations": t}) for t in (0, 1, 6, 12)},
    "latents_24": ("kava", {}),
    "iterations_3": ("kava", {}),
    "data_25": ("kava", {"data": {"train_rows": 385_620 // 4}, "eval": {"every": 754}}),
    "data_50": ("kava", {"data": {"train_rows": 385_620 // 2}, "eval": {"every": 1507}}),
    "full_fine_tuning": ("kava", FULL),
    **{f"full_fine_tuning_{name}": (name, FULL) for name in ("cot", "no_cot", "pccot")},
}
FOLDER = recipes.shipped_folder()
ENTRIES = recipes.entries()
OF_THE_PAPER = [e for e in ENTRIES if e.path.split("/")[1] in SETTINGS]


def said(command, *arguments):
    """What a command prints, and what it returns."""
    console = Console(file=io.StringIO(), soft_wrap=True)
    result = command(*arguments, console)
    return console.file.getvalue(), result


def test_six_settings_by_ten_methods_are_there():
    assert set(METHODS) <= set(registry.names("methods"))
    wanted = {
        f"recipes/{setting}/{method}.yaml": method for setting in SETTINGS for method in METHODS
    }
    assert {e.path: e.method for e in OF_THE_PAPER if e.path.count("/") == 2} == wanted


def differences(one, other):
    if not isinstance(one, dict):
        return one
    return {key: differences(one[key], other[key]) for key in one if one[key] != other[key]}


def test_the_ablations_are_there_and_differ_in_what_they_name():
    folder = FOLDER / "llama1b_aug"
    assert {file.stem for file in (folder / "ablations").glob("*.yaml")} == ABLATIONS.keys()
    for name, (base, expected) in ABLATIONS.items():
        ablation = load_resolved(folder / "ablations" / f"{name}.yaml").model_dump(by_alias=True)
        found = differences(
            ablation, load_resolved(folder / f"{base}.yaml").model_dump(by_alias=True)
        )
        assert found == expected, name


@pytest.mark.parametrize("entry", OF_THE_PAPER, ids=lambda entry: entry.path)
def test_a_recipe_is_short_and_has_a_source_beside_each_value(entry):
    _, *lines = entry.file.read_text(encoding="utf-8").splitlines()  # without that for editors
    assert len(lines) <= 30 and max(map(len, lines)) <= 100
    assert entry.about.endswith(".") and any("arXiv:" in line for line in lines[:3])
    for line, after in zip(lines, [*lines[1:], ""], strict=True):
        no_value = line.startswith(("#", "method:")) or line.endswith(":")
        goes_on = line.startswith("     ")  # what began on the line before
        assert no_value or goes_on or "#" in line or after.startswith("#"), line


@pytest.mark.parametrize("entry", OF_THE_PAPER, ids=lambda entry: entry.path)
def test_a_recipe_names_its_backbone_and_data(entry):
    setting = entry.path.split("/")[1]
    recipe = load_resolved(entry.file)
    owner = {"llama1b": "meta-llama/Llama-3.2-1B-Instruct",
             "llama3b": "meta-llama/Llama-3.2-3B-Instruct",
             "qwen05b": "Qwen/Qwen2.5-0.5B-Instruct"}[setting.split("_")[0]]  # fmt: skip
    from_cot = f"./runs/{setting}-cot-seed42"
    assert recipe.backbone == (from_cot if recipe.method == "lotus" else owner)
    assert recipe.family == ("qwen2" if "Qwen" in owner else "llama")
    assert recipe.data.train in data_sets() and recipe.data.validation == recipe.data.train
    form = "natural" if setting.endswith("nl") else "equation"
    assert form in NAMES and recipe.data.options.get("form", "equation") == form


def test_the_list_has_a_line_for_each_recipe_backbones_marked():
    text, _ = said(recipes.show)
    lines = text.splitlines()
    assert [line.split()[0] for line in lines] == [entry.path for entry in ENTRIES]
    (backbone,) = [line for line in lines if line.startswith("recipes/quickstart/backbone.yaml")]
    assert re.search(r"\.yaml +backbone +The quickstart's backbone", backbone)
    order = [entry.path for entry in ENTRIES]
    assert order.index("recipes/llama1b_aug/ablations/latents_6.yaml") < order.index(
        "recipes/llama1b_aug/ablations/latents_12.yaml"
    )


def test_every_recipe_runs_two_steps():
    text, all_ran = said(recipes.check, [])
    assert all_ran, text
    *lines, last = text.splitlines()
    assert last == f"{len(ENTRIES)} recipes, all run"
    losses = {line.split()[0]: line.split(" s  ")[1].split() for line in lines}
    assert losses["recipes/llama3b_aug/kava.yaml"] == ["codi", "kv", "student_ce", "teacher_ce"]
    assert "codi" not in losses["recipes/llama1b_aug/ablations/without_codi.yaml"]
    assert losses["recipes/qwen05b_aug_nl/lotus.yaml"] == ["readout", "student_ce"]
    assert losses["recipes/quickstart/backbone.yaml"] == ["teacher_ce"]


def test_check_names_what_fails_and_goes_on(tmp_path):
    good = (FOLDER / "llama1b_aug" / "no_cot.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(re.sub(r"\w+_proj", "z_proj", good))
    (tmp_path / "b.yaml").write_text(good.replace("epochs:", "epocs:"))
    (tmp_path / "c.yaml").write_text(good)
    text, all_ran = said(recipes.check, [str(tmp_path)])
    assert not all_ran
    a, b, c, last = text.splitlines()
    assert "a.yaml  FAILED" in a and "z_proj" in a
    assert "b.yaml  FAILED" in b and "'epochs'" in b
    assert "c.yaml  ok" in c and c.endswith("student_ce")
    assert last.startswith("3 recipes; failed: ") and "c.yaml" not in last


def test_check_of_one_recipe():
    text, all_ran = said(recipes.check, ["recipes/bench/no_cot.yaml"])
    assert all_ran and text.splitlines()[-1] == "1 recipe, all run"


def test_check_of_nothing(tmp_path):
    with refused("sweeps.no-recipe", str(tmp_path)):
        recipes.entries([tmp_path])
    with refused("system.no-such-file", "nowhere"):
        recipes.entries(["nowhere"])


def test_the_recipes_are_table_6():
    text, same = said(paper.show, None)
    assert same, text
    table = published.load()["table6"]
    assert sorted(table["settings"]) == sorted(SETTINGS)
    for setting, own in table["settings"].items():
        found = {line.name for line in paper.compare() if line.setting == setting}
        assert found == {*own, *table["common"]}


CHANGES = {
    "codi.weight": ("weight: 20,", "weight: 10,"),
    "kv.loss": ("smooth_l1", "mse"),
    "kv.layerwise_std": (
        "loss: smooth_l1, layerwise_std: false",
        "loss: smooth_l1, layerwise_std: true",
    ),
    "projection": ("projection: none", "projection: mlp"),
    "train.learning_rate": ("2e-4", "8e-4"),
    "kv.eviction.lambda": ("lambda: 0.0", "lambda: 0.1"),
    "data.options.form": ("form: natural", "form: equation"),
    "seed": ("seed: 42", "seed: 43"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_a_value_that_is_not_table_6s_is_named(tmp_path, key):
    for setting in SETTINGS:
        (tmp_path / setting).mkdir()
        shutil.copy(FOLDER / setting / "kava.yaml", tmp_path / setting)
    file = tmp_path / "llama3b_aug_nl" / "kava.yaml"
    before, after = CHANGES[key]
    text = file.read_text(encoding="utf-8")
    assert before in text
    file.write_text(text.replace(before, after), encoding="utf-8")
    printed, same = said(paper.show, tmp_path)
    assert not same
    assert printed.splitlines()[-1].endswith(f" 1 differ: llama3b_aug_nl {key}")
    (wrong,) = [line for line in printed.splitlines() if line.endswith("DIFFERS")]
    assert wrong.startswith("llama3b_aug_nl") and f" {key} " in wrong


def test_a_list_shows_the_description_or_else_the_first_line(tmp_path):
    good = (FOLDER / "llama1b_aug" / "no_cot.yaml").read_text(encoding="utf-8")
    (tmp_path / "a.yaml").write_text(f"{good}description: |\n  Mine, with\n  more steps.\n")
    (tmp_path / "b.yaml").write_text(good)
    (tmp_path / "c.yaml").write_text("method: no_cot\ndescription:\n")
    told = [entry.about for entry in recipes.entries([tmp_path])]
    first = good.splitlines()[1].removeprefix("# ")
    assert told == ["Mine, with more steps.", first, ""]


def test_the_commands_and_their_exit_status(kava, tmp_path):
    status, listed = kava("recipes")
    assert status == 0 and len(listed.splitlines()) == len(ENTRIES)
    bad = tmp_path / "bad.yaml"
    bad.write_text("method: kva\n")
    status, checked = kava("recipes", "check", bad)
    assert status == 1 and "'kva'" in checked and "'kava'" in checked


def test_a_folder_without_the_papers_settings():
    with refused("system.no-such-file"):
        paper.compare(Path("nowhere"))
