"""The quickstart runs from end to end, and what is committed of it is true."""

import json
import re
import statistics
from pathlib import Path

import pytest
import yaml
from refusals import refused
from rich.console import Console

from kava.data.tasks import load_task
from kava.quickstart import BACKBONE, CHECKPOINT, METHODS, SEEDS, SUMMARY, make_plan
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry
from kava.runs.folder import differences
from tools.readme import filled

ROOT = Path(__file__).parents[1]
RESULTS = (ROOT / SUMMARY).parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "Makefile").exists(), reason="the committed results are part of a checkout only"
)
LIMIT = 8 * 1024 * 1024


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def test_smoke_leaves_every_file_and_says_what_is_new_and_what_is_committed(
    tmp_path, kava, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    status, said = kava("quickstart", "--smoke", "-o", "run")
    assert status == 0, said
    assert "Made just now" in said and "Committed" in said and "kava ask" in said
    assert said.count("[right: ") == 3
    run = tmp_path / "run"
    result = read(run / "result.json")
    assert {row["method"] for row in result["rows"]} == {"cot", *METHODS}
    assert {"versions", "machine", "command", "seeds", "commit"} <= result.keys()
    for method in METHODS:
        recipe = yaml.safe_load((run / method / "recipe.yaml").read_text())
        assert recipe["method"] == method
        assert [r["step"] for r in lines(run / method / "metrics.jsonl") if "loss" in r] == [
            1, 2, 3, 4,
        ]  # fmt: skip
        assert (run / method / "checkpoint" / "kava.json").is_file()
        card = (run / method / "checkpoint" / "README.md").read_text(encoding="utf-8")
        assert "| synthetic (version 1, test) |" in card and "of synthetic" in card
    for method in ("cot", *METHODS):
        predictions = lines(run / method / "predictions" / "synthetic.jsonl")
        assert len(predictions) == 20 == len({p["id"] for p in predictions})
    assert len(list(run.glob("*.png"))) == 2
    _, again = kava("quickstart", "--smoke", "-o", "run", "--method", "no_cot")
    assert "run-1" in again.out  # the earlier result is kept
    assert read(tmp_path / "run-1" / "result.json") == result


RECIPES = {
    file.stem: load_resolved(file)
    for file in sorted((ROOT / "recipes/quickstart").glob("*.yaml"))
    if file.stem != "backbone"
}
ABLATIONS = {
    file.stem: load_resolved(file)
    for file in sorted((ROOT / "recipes/quickstart/ablations").glob("*.yaml"))
}


@pytest.mark.parametrize("recipes", (RECIPES, ABLATIONS), ids=("methods", "ablations"))
def test_the_same_rows_for_the_same_number_of_steps(recipes):
    kept = []
    for recipe in recipes.values():
        # Each has its own learning rate, chosen on validation rows.
        train = recipe.train.model_copy(update={"learning_rate": 1.0})
        kept.append((recipe.data, train, recipe.backbone, recipe.adapter))
    assert all(one == kept[0] for one in kept)


def test_the_full_length_is_every_recipe_with_every_seed(tmp_path):
    plan = make_plan(tmp_path, True, False, None, None, Console(quiet=True))
    assert (set(plan.methods), plan.seeds) == (set(RECIPES), SEEDS)
    for method, recipe in RECIPES.items():
        assert plan.recipe(method, recipe.seed) == recipe
    with refused("quickstart.unknown-method", "lotos"):
        make_plan(tmp_path, True, False, None, ["lotos"], Console(quiet=True))


def test_every_method_has_a_recipe():
    assert {recipe.method for recipe in RECIPES.values()} <= set(registry.names("methods"))
    assert RECIPES["kava_readout"].latent_readout.weight > 0


@pytest.mark.parametrize(
    "backbone, new_tokens", ((BACKBONE, 64), ("checkpoints/quickstart/sentences", 192))
)
def test_a_committed_backbone_answers_as_when_it_was_made(backbone, new_tokens):
    folder = ROOT / backbone
    assert read(folder / "result.json")["validation_accuracy"] >= 95
    assert (folder / "model.safetensors").stat().st_size <= LIMIT
    sample = lines(folder / "sample.jsonl")
    reasoner = Reasoner.from_backbone(str(folder))
    answers = reasoner.answer(reasoner.think([s["question"] for s in sample]), new_tokens)
    assert [a.text for a in answers] == [s["prediction"] for s in sample]
    assert len(sample) == 20


def test_the_committed_checkpoint_answers_as_in_the_committed_predictions():
    folder = ROOT / CHECKPOINT
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= LIMIT
    predictions = lines(RESULTS / "kava-seed42" / "predictions" / "synthetic.jsonl")[:100]
    examples = load_task("synthetic", limit=100).examples
    assert [p["id"] for p in predictions] == [e.id for e in examples]
    reasoner = open_reasoner(str(folder))
    answers = reasoner.answer(reasoner.think([e.question for e in examples]), 4)
    # Other processors add up in another order; a tie may then fall the other way.
    same = sum(a.text == p["prediction"] for a, p in zip(answers, predictions, strict=True))
    assert same >= 98
    assert {a.forward_passes for a in answers} == {p["forward_passes"] for p in predictions}


def assert_follows(folder: Path, names: set[str], seeds: tuple[int, ...]):
    rows = {row["name"]: row for row in read(folder / "summary.json")["rows"]}
    assert set(rows) == names
    for name, row in rows.items():
        assert row["seeds"] == list(seeds) and not row["missing_seeds"]
        accuracies = []
        for seed in seeds:
            predictions = lines(folder / f"{name}-seed{seed}" / "predictions" / "synthetic.jsonl")
            assert len(predictions) == row["n"] == 1000
            right = sum(p["correct"]["numeric"] for p in predictions)
            accuracies.append(round(100 * right / len(predictions), 2))
        assert accuracies == row["accuracies"]
        assert row["accuracy"] == pytest.approx(statistics.mean(accuracies), abs=5e-5)
        assert row["accuracy_std"] == pytest.approx(statistics.stdev(accuracies), abs=5e-5)


def test_the_summary_follows_from_the_predictions():
    assert_follows(RESULTS, set(RECIPES), SEEDS)


def test_the_summary_of_the_ablations_follows_from_the_predictions():
    seeds = tuple(read(RESULTS / "ablations" / "summary.json")["seeds"])
    assert_follows(RESULTS / "ablations", set(ABLATIONS), seeds)


@pytest.mark.parametrize(
    ("folder", "recipes"), [("", RECIPES), ("ablations", ABLATIONS)], ids=("methods", "ablations")
)
def test_the_committed_runs_are_those_of_the_recipes(folder, recipes):
    for name, recipe in recipes.items():
        for seed in read(RESULTS / folder / "summary.json")["seeds"]:
            wanted = recipe.model_copy(update={"seed": seed})
            found = differences(RESULTS / folder / f"{name}-seed{seed}", wanted)
            assert found == "", (name, found)


def test_the_readme_has_the_committed_numbers():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert filled(text, ROOT) == text
    with pytest.raises(ValueError, match="quickstart"):
        filled(re.sub("<!-- quickstart -->", "", text), ROOT)
