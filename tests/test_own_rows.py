"""`Reasoner.train_on`: rows from Python are trained on as those of a file are."""

import json

import pytest
import torch
from refusals import refused
from rich.console import Console
from tiny import reasoner

from kava.data import load_examples
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Recipe
from kava.training.from_rows import SOURCE
from kava.training.run import train_run
from kava.types import Example

ROWS = load_examples("synthetic", "train", limit=12)
VALIDATION = load_examples("synthetic", "validation", limit=3)


def recipe(backbone, rows="nothing", **changes):
    tree = {
        "method": "kava", "backbone": str(backbone), "num_latents": 4, "num_iterations": 1,
        "codi": {"weight": 1}, "kv": {"weight": 1}, "lora": {"r": 4, "dropout": 0},
        "data": {"train": str(rows)}, "eval": {"max_new_tokens": 3},
        "train": {"steps": 3, "batch_size": 4, "learning_rate": 1e-3, "log_every": 1},
    }  # fmt: skip
    return Recipe.model_validate({**tree, **changes})


def mapping(row):
    return {"id": row.id, "question": row.question, "steps": list(row.steps), "answer": row.answer}


def weights(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("form", (lambda row: row, mapping), ids=("examples", "mappings"))
def test_the_same_as_from_a_file(backbone, tmp_path, form):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(mapping(row)) + "\n" for row in ROWS), encoding="utf-8")
    train_run(recipe(backbone, file), tmp_path / "file", Console(quiet=True))
    of_file = Reasoner.from_pretrained(tmp_path / "file")
    given = recipe(backbone)
    model = Reasoner.build(given)
    run = tmp_path / "python"
    result = model.train_on([form(row) for row in ROWS], given, output=run, quiet=True)
    for name, weight in weights(of_file).items():
        assert torch.equal(weight, dict(model.named_parameters())[name]), name
    assert (result["steps"], result["rows"], result["validation_n"]) == (3, 12, 0)
    loaded = Reasoner.from_pretrained(run)
    question = ROWS[0].question
    assert loaded.generate(question, 4) == model.generate(question, 4)
    assert not model.training and len((run / "metrics.jsonl").read_text().splitlines()) == 3
    card = (run / "checkpoint" / "README.md").read_text()
    assert f"12 of {SOURCE}" in card


def test_a_merged_adapter_that_is_trained_on_is_described_as_trained_whole(backbone, tmp_path):
    model = Reasoner.build(recipe(backbone)).merge()
    result = model.train_on(ROWS, output=tmp_path / "run", quiet=True)
    assert result["trained_weights"] == sum(w.numel() for w in model.parameters())
    card = (tmp_path / "run" / "checkpoint" / "README.md").read_text()
    assert "none: all weights were trained" in card and "merged into" not in card


def test_validation_rows_are_scored_and_nothing_is_left_behind(backbone, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = Reasoner.build(recipe(backbone))
    result = model.train_on(ROWS, validation=VALIDATION, quiet=True)
    assert result["validation_n"] == 3 and result["validation_accuracy"] is not None
    assert list(tmp_path.iterdir()) == []


def test_training_may_change_and_goes_on_from_where_it_is(backbone):
    model = Reasoner.build(recipe(backbone, seed=5))
    model.train_on(ROWS, quiet=True)
    before, identity = weights(model), model.recipe.backbone
    other = recipe("elsewhere", seed=6, kv={"weight": 3}, drop_last_step=False)
    model.train_on(ROWS, other, quiet=True)
    assert model.recipe.kv.weight == 3 and model.recipe.backbone == identity
    assert model.method.recipe.kv.weight == 3 and not model.encoder.drop_last_step
    moved = [n for n, w in weights(model).items() if not torch.equal(w, before[n])]
    assert moved and all("lora" in n or "base" not in n for n in moved)


@pytest.mark.parametrize(
    ("change", "key", "values"),
    [
        ({"method": "pccot", "kv": {}}, "method", ("'pccot'", "'kava'")),
        ({"adapter": "full"}, "adapter", ("'full'",)),
        ({"lora": {"r": 8, "dropout": 0}}, "lora.r", (" 8",)),
        ({"projection": "mlp"}, "projection", ("'mlp'",)),
        ({"kv": {"projection": "linear"}}, "kv.projection", ("'linear'",)),
    ],
)
def test_a_recipe_for_other_weights_is_refused(backbone, change, key, values):
    model = Reasoner.build(recipe(backbone))
    before, kept = weights(model), model.recipe
    with refused("training.other-recipe", key) as told:
        model.train_on(ROWS, recipe(backbone, **change), quiet=True)
    assert all(value in str(told.value) for value in values)
    assert model.recipe == kept and model.method.recipe == kept
    assert all(torch.equal(w, before[name]) for name, w in weights(model).items())


@pytest.mark.parametrize(
    ("rows", "code", "key", "values"),
    [
        ([], "data.no-rows", "rows", ()),
        (
            [mapping(ROWS[0]), {"question": "q", "steps": []}],
            "data.missing-field",
            "answer",
            ("rows[1]: ",),
        ),
        ([mapping(ROWS[0]), "a text"], "training.not-a-row", "rows[1]", ("not str",)),
        ([ROWS[0], ROWS[0]], "data.repeated-id", ROWS[0].id, ("rows[1]: ", "rows[0]")),
        ([Example("a", " ", (), "1")], "data.bad-field", "question", ("rows[0]: ",)),
    ],
)
def test_a_broken_row_is_named_by_its_place(rows, code, key, values):
    with refused(code, key) as told:
        reasoner("llama", "kava").train_on(rows, quiet=True)
    assert all(value in str(told.value) for value in values)


def test_rows_to_score_on_are_no_training_rows():
    with refused("training.shared-validation") as told:
        reasoner("llama", "kava").train_on(ROWS, validation=ROWS[:1], quiet=True)
    assert "data: 1 " in str(told.value)


def test_a_folder_that_is_taken_and_nothing_to_resume(backbone, tmp_path):
    model = Reasoner.build(recipe(backbone))
    with refused("training.no-output", "output"):
        model.train_on(ROWS, resume=True, quiet=True)
    model.train_on(ROWS, output=tmp_path / "run", quiet=True)
    with refused("runs.holds-run", str(tmp_path / "run")) as told:
        model.train_on(ROWS, output=tmp_path / "run", quiet=True)
    assert "--resume" not in str(told.value)
    with refused("runs.finished", str(tmp_path / "run")):
        model.train_on(ROWS, output=tmp_path / "run", resume=True, quiet=True)


def test_a_validation_without_numbers_is_said(backbone, capsys):
    worded = [Example("v", "Is it so?", (), "yes"), Example("w", "How many?", (), "3")]
    Reasoner.build(recipe(backbone)).train_on(ROWS, validation=worded)
    said = " ".join(capsys.readouterr().out.split())
    assert "data.validation: 1 of 2 right answers are not plain numbers, such as 'yes'" in said


@pytest.mark.parametrize("every", (None, 1, 2, 3, 5))
def test_the_last_step_is_validated_once(backbone, tmp_path, every):
    settings = {"eval": {"max_new_tokens": 2, "every": every}}
    model = Reasoner.build(recipe(backbone, **settings))
    model.train_on(ROWS, validation=VALIDATION, output=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    steps = [record["step"] for record in records if "validation_accuracy" in record]
    assert steps == [*range(every or 3, 3, every or 3), 3]
