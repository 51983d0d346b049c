"""What a training costs: counted on a tiny model, and the same by hand."""

import json
import random
import re
from pathlib import Path

import pytest
from refusals import refused
from tiny import weights

from kava.backbones import loading
from kava.data import load_examples
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.recipe.schema import Recipe
from kava.sweeps import lengths as histogram
from kava.sweeps.cost import ANSWER, SAMPLE, Estimator, rows_seen
from kava.sweeps.dry_run import _cost_cells

M, T = 4, 2


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Seven rows of many lengths."""
    file = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    lines = [
        {
            "question": "Ann had " + "4 pens and " * i + "7 ?",
            "steps": [f"<<{n}+1={n + 1}>>" for n in range(i % 4)],
            "answer": str(5**i),
        }
        for i in range(7)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return file


def recipe(method: str, backbone: Path | str, rows: Path | str, **changes) -> Recipe:
    tree = {
        "method": method, "backbone": str(backbone), "num_latents": M, "num_iterations": T,
        "drop_last_step": False, "lora": {"r": 4},
        **{name: {"weight": 1} for name in weights(method)},
        "data": {"train": str(rows)},
        "train": {"epochs": 2, "batch_size": 2, "micro_batch_size": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    return Recipe.model_validate({**tree, **changes})


def lengths(backbone: Path, rows: Path, drop: bool = False) -> list[tuple[int, int, int]]:
    """Tokens of question with BOS, steps, and answer with its prompt and EOS, of each row."""
    tokenizer = loading.load_tokenizer(backbone)

    def size(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return [
        (
            1 + size(e.question),
            sum(size(step) for step in (e.steps[:-1] if drop else e.steps)),
            size("The answer is:") + size(" " + e.answer) + 1,
        )
        for e in load_examples(str(rows), "train")
    ]


def by_hand(method: str, q: int, c: int, a: int) -> int:
    """Columns of one row that enter the backbone; spec, Methods and Latents."""
    if method == "cot":
        return q + c + a
    if method == "no_cot":
        return q + a
    # The question once; the teacher; <bot> and M latents; T times M latents; <eot> and the answer.
    return q + (c + a) + (1 + M) + T * M + (1 + a)


@pytest.mark.parametrize("method", ["cot", "no_cot", "pccot", "kava"])
@pytest.mark.parametrize("drop", [False, True])
def test_token_forwards_are_those_counted_by_hand(method, drop, backbone, rows):
    found = Estimator().cost(recipe(method, backbone, rows, drop_last_step=drop))
    epoch = sum(by_hand(method, *row) for row in lengths(backbone, rows, drop))
    assert found.notes == ()
    assert (found.steps, found.token_forwards) == (8, 2 * epoch)  # 2 epochs of 4, 3 rows last


def test_pads_of_a_micro_batch_count(backbone, rows):
    train = {"steps": 3, "batch_size": 7, "learning_rate": 1e-3}
    found = Estimator().cost(recipe("kava", backbone, rows, train=train))
    widths = [max(row[part] for row in lengths(backbone, rows)) for part in range(3)]
    assert found.token_forwards == 3 * 7 * by_hand("kava", *widths)


def test_rows_are_seen_as_the_trainer_deals_them(backbone, rows):
    of_three, half, few = (
        recipe("cot", backbone, rows, train={"learning_rate": 1, **train}).train
        for train in (
            {"epochs": 2, "batch_size": 3}, {"epochs": 0.5, "batch_size": 2}, {"steps": 3}
        )
    )  # fmt: skip
    assert [rows_seen(steps, 7, of_three) for steps in range(7)] == [0, 3, 6, 7, 10, 13, 14]
    assert [train.total_steps(7) for train in (of_three, half, few)] == [6, 2, 3]
    assert (of_three.steps_per_epoch(6), of_three.steps_per_epoch(7)) == (2, 3)


def test_each_stage_of_a_curriculum_counts_for_itself(backbone, tmp_path):
    file = tmp_path / "rows.jsonl"
    line = {"question": "Ann had 4 pens ?", "steps": ["<<4+1=5>>", "<<5+12=17>>"], "answer": "7"}
    file.write_text("".join(json.dumps({**line, "id": i}) + "\n" for i in range(4)))
    options = {"latents_per_stage": 2, "max_stage": 1, "epochs_per_stage": 1.0}
    train = {"epochs": 4, "batch_size": 2, "learning_rate": 1e-3}
    changes = {"num_latents": 2, "method_options": options, "train": train}
    found = Estimator().cost(recipe("coconut", backbone, file, **changes))
    (q, c, a), *_ = lengths(backbone, file)
    first = len(loading.load_tokenizer(backbone)("<<4+1=5>>", add_special_tokens=False).input_ids)
    stages = [q + c + a, q + 1 + 2 + 1 + (c - first) + a, *2 * [q + 1 + 2 + 1 + a]]
    assert found.token_forwards == 4 * sum(stages)


def test_without_rows_or_tokenizer_the_assumed_lengths_are_told(backbone, rows):
    known = load_resolved("recipes/llama1b_aug/kava.yaml")
    found = Estimator().cost(known)
    assert found.steps == 30_130
    # By hand, on another draw of the same lengths, in pools of as many examples as were counted,
    # which are sorted by length; the last of three steps is dropped.
    counted = json.loads(histogram.COUNTS.read_text())[histogram.NAME]
    drawn = random.Random(7).choices(counted, [one[2] for one in counted], k=32 * SAMPLE)
    widths = []
    for pool in (drawn[at : at + SAMPLE] for at in range(0, len(drawn), SAMPLE)):
        pool.sort(key=lambda one: one[0] + 2 * one[1] // 3)
        for at in range(0, SAMPLE, known.train.micro_batch_size):
            part = pool[at : at + known.train.micro_batch_size]
            widths.append((max(q for q, *_ in part), max(2 * r // 3 for _, r, _ in part)))
    assert known.train.group_by_length
    row = sum(q + (r + ANSWER) + (1 + 24) + 3 * 24 + (1 + ANSWER) for q, r in widths)
    assert found.token_forwards == pytest.approx(10 * 385_620 * row / len(widths), rel=0.03)
    assert "assumed: 385,620 rows as long as those of GSM8k-Aug" in found.notes[0]
    assert "gsm8k_aug" in found.notes[0]
    page = Path(__file__).parents[1] / "docs" / "scale.md"
    if page.exists():  # part of a checkout only
        lines = re.findall(r"kava-seed\d+ +planned +(.+)", page.read_text(encoding="utf-8"))
        assert len(lines) == 3 and {tuple(re.split(r"  +", line)) for line in lines} == {
            _cost_cells(found)
        }
        assert f"kava: {found.notes[0]}\n" in page.read_text(encoding="utf-8")

    found = Estimator().cost(recipe("cot", "nobody/nothing", rows, family="llama"))
    mean = sum((q + r) * n for q, r, n in counted) / sum(n for *_, n in counted)
    assert found.token_forwards == pytest.approx(2 * 7 * (mean + ANSWER), rel=0.05)  # no pads
    assert "the tokenizer of nobody/nothing" in found.notes[0]

    found = Estimator().cost(recipe("cot", "nobody/nothing", "nobody/rows", family="llama"))
    assert (found.steps, found.token_forwards) == (None, None)
    assert "steps not known" in found.notes[0] and "nobody/rows" in found.notes[0]

    found = Estimator().cost(recipe("cot", "nobody/nothing", rows))
    assert found.token_forwards is None and "'family'" in found.notes[1]


@pytest.mark.parametrize("method", ["icot", "coconut"])
def test_a_training_that_ends_before_its_last_stage_is_foreseen(method, backbone, rows):
    """In the line that training would refuse it with."""
    longest = max(steps for _, steps, _ in lengths(backbone, rows))
    options, needed = {
        "icot": ({"tokens_per_epoch": 60}, longest / 60),
        "coconut": ({"max_stage": 1, "epochs_per_stage": 3}, 6),
    }[method]
    train = {"batch_size": 2, "learning_rate": 1e-3}
    long, short = (
        recipe(
            method, backbone, rows, num_latents=2, method_options=options, train={**train, **end}
        )
        for end in ({"epochs": 7}, {"steps": 1})
    )
    estimator = Estimator()
    assert estimator.cost(long).error == ""
    refusal = estimator.cost(short).error
    assert f"'{method}'" in refusal and f" {needed:.2f} " in refusal
    with refused("training.too-short", "method_options") as told:
        Reasoner.build(short).train_on(load_examples(str(rows), "train"), quiet=True)
    assert str(told.value) == refusal


def test_a_dry_run_lists_every_run_and_writes_nothing(backbone, rows, tmp_path, capsys):
    from rich.console import Console

    from kava.sweeps.dry_run import list_runs
    from kava.sweeps.sweep import Scoring, plan, sweep

    file, out = tmp_path / "kava.yaml", tmp_path / "out"
    wanted = recipe("kava", backbone, rows)
    file.write_text(wanted.model_dump_json(by_alias=True))
    console = Console(width=200)
    done = plan([str(file)], [1], [], out, console)
    sweep(done, Scoring(), out, console)
    capsys.readouterr()
    before = {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")}
    assert list_runs(plan([str(file)], [1, 2], [], out, console), Scoring(), console)
    said = capsys.readouterr().out
    tokens = 2 * sum(by_hand("kava", *row) for row in lengths(backbone, rows))
    assert re.search(rf"kava-seed1 +finished +8 +{tokens:,} *\n", said)
    assert re.search(rf"kava-seed2 +planned +8 +{tokens:,} *\n", said)
    assert f"2 runs: 1 finished, 1 planned; {tokens:,} token-forwards to go" in said
    assert list_runs(done, Scoring(["synthetic"]), console)
    assert "to score" in capsys.readouterr().out
    changed = plan([str(file)], [1], ["num_latents=3"], out, console)
    assert not list_runs(changed, Scoring(), console)
    assert "num_latents: 4 in the run, 3 given" in capsys.readouterr().out
    assert {f: f.stat().st_mtime_ns for f in tmp_path.rglob("*")} == before
