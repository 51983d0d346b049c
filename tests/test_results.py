"""Tables, plots and comparisons follow from run folders; a gap is shown, and so is a source."""

import csv
import io
import json
import re
from pathlib import Path

import pytest
import yaml
from refusals import refused
from typer.testing import CliRunner

from kava.cli import app
from kava.evaluation.answers import standard_error
from kava.evaluation.compare import compare
from kava.evaluation.runner import EvaluationResult
from kava.reasoning.resolve import load_resolved
from kava.recipe import registry, schema
from kava.report import draw, published, results, table
from kava.report.plots import styles_of
from kava.report.rows import VALIDATION, make_row

ROOT = Path(__file__).resolve().parents[1]
PNG = b"\x89PNG\r\n\x1a\n"


def score(accuracy, n=1000, passes=6.0):
    return {
        "version": 1, "n": n, "accuracy": accuracy, "accuracy_se": 1.5, "forward_passes": passes,
        "prefill_passes": 2.0, "generated_tokens": 2.0, "ms_per_question": 8.0,
        "ms_per_question_in_batch": 1.25, "tokens_per_second": 1600.0,
        "peak_memory": {"of": "process", "bytes": 400_000_000, "since_start": False},
        "accuracy_by_steps": {"1": [99.0, 500], "2": [accuracy - 1, 500]},
    }  # fmt: skip


def make_run(folder, recipe, overrides=(), **scores):
    """A run folder with results that are told, not measured; `scores` by task."""
    folder.mkdir(parents=True)
    resolved = load_resolved(recipe, list(overrides))
    (folder / "recipe.yaml").write_text(schema.dump(resolved), encoding="utf-8")
    result = {
        "method": resolved.method, "seed": resolved.seed, "steps": 10, "train_seconds": 5.0,
        "validation_accuracy": 50.0, "validation_n": 300, "scores": scores,
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    lines = [{"step": s, "loss": 3 / s, "student_ce": 2 / s, "epoch": s / 10} for s in (1, 5, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines), "utf-8")
    return folder


@pytest.fixture
def runs(tmp_path):
    """KaVa with two seeds, PCCoT with one, and two KaVa runs with other M."""
    top = tmp_path / "runs"
    kava, pccot = "recipes/quickstart/kava.yaml", "recipes/quickstart/pccot.yaml"
    make_run(top / "kava-seed42", kava, ["seed=42"], synthetic=score(90.0))
    make_run(top / "kava-seed123", kava, ["seed=123"], synthetic=score(94.0))
    make_run(
        top / "pccot-seed42", pccot, ["seed=42"], synthetic=score(75.0), gsm8k=score(3.0, 1319)
    )
    make_run(top / "m6-seed42", kava, ["seed=42", "num_latents=6"], synthetic=score(40.0))
    make_run(top / "m12-seed42", kava, ["seed=42", "num_latents=12"], synthetic=score(60.0))
    return top


def cells(markdown):
    """A Markdown table as lists of cells, heading first."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in lines
        if "---" not in line
    ]


def test_runs_of_one_recipe_are_one_row(runs):
    groups = {group.name: group for group in results.find([runs])}
    assert sorted(groups) == ["kava", "m12", "m6", "pccot"]
    assert sorted(groups["kava"].runs) == [42, 123]
    row = groups["kava"].row("synthetic")
    assert (row["accuracy"], row["accuracy_std"]) == (92.0, 2.8284)
    assert row["tokens_per_second"] == 1600.0 and row["peak_memory_bytes"] == 400_000_000


def test_the_table_shows_what_is_missing(runs):
    made = table.results_table(results.find([runs]))
    heading, *rows = cells(made.markdown())
    assert heading[:3] == ["method", "synthetic (%)", "gsm8k (%)"]
    assert rows[0][:3] == ["KaVa", "92.0 ± 2.8", "- (0/2)"]
    assert rows[1][:3] == ["PCCoT", "75.0 ± 1.5 (1/2)", "3.0 ± 1.5 (1/2)"]
    assert rows[0][-1] == "400.0" and rows[0][-2] == "1600.0"
    assert made.caption == (
        "n = 1,000 or 1,319; ± is standard deviation over 2 seeds, one standard error for a single "
        "run; (k/m): only k of m seeds; costs on synthetic"
    )
    both = table.results_table(results.find([runs / "kava-seed42", runs / "kava-seed123"]))
    assert both.caption == "n = 1,000; ± is standard deviation over 2 seeds"


def test_three_forms_of_one_table(runs, tmp_path):
    made = table.results_table(results.find([runs]), ["synthetic"])
    files = made.write(tmp_path / "out")
    assert [file.suffix for file in files] == [".md", ".csv", ".tex"]
    read = list(csv.DictReader(io.StringIO(files[1].read_text("utf-8"))))
    assert (read[0]["method"], read[0]["synthetic (%)"], read[0]["synthetic (%) ±"]) == (
        "KaVa", "92", "2.8284",
    )  # fmt: skip
    tex = files[2].read_text("utf-8")
    assert r"KaVa & 92.0 $\pm$ 2.8 & 6.0" in tex and r"synthetic (\%)" in tex
    assert tex.count("&") == (len(made.headings) - 1) * (len(made.rows) + 1)
    assert r"tokens/s in a batch \\" in tex or r"peak memory (MB) \\" in tex


def test_a_number_is_rounded_once(tmp_path):
    """A deviation of 2.9462 is 2.9; by way of 2.95 it would be 3.0."""
    recipe = "recipes/quickstart/codi.yaml"
    for seed, accuracy in zip((1, 2, 3), (67.2, 63.4, 69.2), strict=True):
        make_run(tmp_path / f"codi-seed{seed}", recipe, [f"seed={seed}"], task=score(accuracy))
    made = table.results_table(results.find([tmp_path]))
    assert cells(made.markdown())[1][1] == "66.6 ± 2.9"
    assert f"{standard_error(3, 180):.1f}" == "1.0"  # 0.9547, which is not 0.95


def test_csv_has_every_digit():
    one = table.MeasuredValue(12345.678, 0.0625)
    made = table.Table("x", "", ("a",), [(one,), (table.MeasuredValue(92.0),)])
    assert made.csv() == "a,a ±\n12345.678,0.0625\n92,\n"


@pytest.mark.parametrize("name", ("=1+1", "+1", "-1", "@SUM(1)", "\t=1", "\r=1", "\n=1", "  =1"))
def test_a_spreadsheet_works_nothing_out(name):
    one, none = table.MeasuredValue(-1.0), table.MeasuredValue(None)
    made = table.Table("t", "", (name, "n"), [(name, one), ("-", none), ("a\r=1", none)])
    rows = list(csv.reader(io.StringIO(made.csv(), newline="")))
    cell = "'" + " ".join(name.splitlines())
    assert rows == [[cell, "n", "n ±"], [cell, "-1", ""], ["-", "", ""], ["a =1", "", ""]]


def test_latex_and_markdown_escape():
    made = table.Table("x", "a\nb", ("a_b|%",), [("1 & {2}",), ("c|d",)])
    assert r"a\_b|\%" in made.latex() and r"1 \& \{2\}" in made.latex()
    assert "% a\n% b\n" in made.latex()
    assert r"| c\|d |" in made.markdown()


def test_headings_stay_one_cell():
    """A task has its name from the user's file (`rows-FILE`)."""
    made = table.Table("x", "", ("a|b", "c\nd"), [("1\n2", "3")])
    assert made.markdown().splitlines() == [
        "| a\\|b | c d |",
        "| --- | --- |",
        "| 1 2 | 3 |",
        "",
        "",
    ]
    assert "a|b & c d" in made.latex()


UNLIKE = [
    ({"n": 10}, "n 1000 and 10"),
    ({"version": 2}, "version 1 and 2"),
    ({"rule": "string"}, "rule numeric and string"),
    ({"split": "train"}, "split test and train"),
    ({"source": "made (seed=1)"}, "source made (seed=0) and made (seed=1)"),
    ({"n": 10, "version": 99}, "n 1000 and 10, version 1 and 99"),
]


@pytest.mark.parametrize(("change", "said"), UNLIKE)
def test_seeds_that_were_not_scored_alike_are_not_averaged(tmp_path, change, said):
    alike = {**score(90.0), "rule": "numeric", "split": "test", "source": "made (seed=0)"}
    recipe = "recipes/quickstart/kava.yaml"
    make_run(tmp_path / "kava-seed1", recipe, ["seed=1"], synthetic=alike)
    other = make_run(tmp_path / "kava-seed2", recipe, ["seed=2"], synthetic=alike | change)
    (group,) = results.find([tmp_path])
    one = (
        f"{tmp_path / 'kava-seed1'} and {other} were not scored in the same way on 'synthetic' "
        f"({said}), "
    )
    for made in (lambda: table.results_table([group]), lambda: group.row("synthetic")):
        with refused("report.not-scored-alike", "synthetic") as told:
            made()
        assert str(told.value).startswith(one)
    by_seed = {1: group.results[1], 2: group.results[2]}
    with refused("report.not-scored-alike", "synthetic") as told:
        make_row("kava", by_seed, "synthetic")
    assert str(told.value).startswith("kava (seed 1) and kava (seed 2) ")
    assert make_row("kava", by_seed, VALIDATION)["accuracy"] == 50.0


@pytest.mark.parametrize(("change", "said"), UNLIKE)
def test_methods_that_were_not_scored_alike_share_no_column(tmp_path, change, said):
    """But for the number of questions, which the table says."""
    alike = {**score(90.0), "rule": "numeric", "split": "test", "source": "made (seed=0)"}
    for method, more in (("kava", {}), ("pccot", change)):
        recipe = f"recipes/quickstart/{method}.yaml"
        make_run(tmp_path / method, recipe, ["seed=1"], synthetic=alike | more, other=alike)
    groups = results.find([tmp_path])
    assert len(table.results_table(groups, ["other"]).rows) == 2
    if set(change) == {"n"}:
        assert "n = 10 or 1,000" in table.results_table(groups).caption
        return
    said = said.removeprefix("n 1000 and 10, ")
    for made in (table.results_table, lambda them: list(draw.draw(them, ["synthetic"], tmp_path))):
        with refused("report.not-scored-alike", "synthetic") as told:
            made(groups)
        assert f" ({said})" in str(told.value)


def test_a_source_counts_by_the_name_of_its_file(tmp_path):
    """Copies of one file lie in other folders on other machines; older results say less."""
    scores = [
        {**score(90.0), "source": "/data/a/rows.jsonl"},
        {**score(90.0), "source": "rows.jsonl"},
        score(90.0),
    ]
    for seed, own in enumerate(scores):
        recipe = "recipes/quickstart/kava.yaml"
        make_run(tmp_path / f"kava-seed{seed}", recipe, [f"seed={seed}"], synthetic=own)
    (group,) = results.find([tmp_path])
    assert group.row("synthetic")["seeds"] == [0, 1, 2]


BROKEN = [
    ({"scores": ["synthetic"]}, "scores", "['synthetic']"),
    ({"scores": {"t": 5}}, "t", "5"),
    ({"scores": {"t": {"accuracy": 5}}}, "accuracy_se", "None"),
    ({"scores": {"t": {**score(9), "accuracy": "9"}}}, "accuracy", "'9'"),
    ({"scores": {"t": {**score(9), "n": float("nan")}}}, "n", "nan"),
    ({"scores": {"t": {**score(9), "accuracy_by_steps": {"1": 5}}}}, "accuracy_by_steps",
     "{'1': 5}"),
    ({"scores": {"t": {**score(9), "peak_memory": 5}}}, "peak_memory", "5"),
    ({"method": 5}, "method", "5"),
    ({"train_seconds": "long"}, "train_seconds", "'long'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "key", "value"), BROKEN, ids=range(len(BROKEN)))
def test_a_result_that_is_none_is_named(tmp_path, change, key, value):
    file = make_run(tmp_path / "kava", "recipes/quickstart/kava.yaml") / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), **change}), "utf-8")
    with refused("report.not-a-result", key) as told:
        results.find([tmp_path])
    said = str(told.value)
    assert said.startswith(f"{file}: ") and said.endswith(f", not {value}")
    assert "'t'" in said or "t" not in change.get("scores", ())
    file.write_text("5", "utf-8")
    with refused("report.no-run", str(tmp_path)):
        results.find([tmp_path])


@pytest.mark.parametrize(
    ("paths", "code", "key"),
    [
        (["nowhere"], "report.no-such-folder", "nowhere"),
        (["empty"], "report.no-run", "empty"),
        (["a", "b"], "report.same-run", str(Path("b", "kava-seed42"))),
    ],
)
def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch, paths, code, key):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for top in ("a", "b"):
        make_run(Path(top) / "kava-seed42", "recipes/quickstart/kava.yaml", synthetic=score(1.0))
    with refused(code, key):
        results.find(paths)


def test_recipes_of_the_same_name_are_told_apart(tmp_path):
    for top, weight in (("a", 1), ("b", 2)):
        folder = tmp_path / top / "kava-seed42"
        make_run(folder, "recipes/quickstart/kava.yaml", [f"kv.weight={weight}"], gsm8k=score(1.0))
    assert [group.name for group in results.find([tmp_path])] == ["a/kava", "b/kava"]


def test_a_task_that_nobody_was_scored_on(runs):
    with refused("report.task-not-scored", "svamp") as told:
        table.results_table(results.find([runs]), ["svamp"])
    assert str(told.value).endswith(": synthetic, gsm8k")


# -- the paper's tables --------------------------------------------------------------------------

LLAMA = "recipes/llama1b_aug/{}.yaml"


def test_published_numbers_are_those_of_the_recipes():
    """The first line of each recipe says the published number, or that there is none."""
    for setting in published.settings():
        for file in sorted((ROOT / "recipes" / setting).glob("*.yaml")):
            head = file.read_text("utf-8").partition("\nmethod")[0].replace("\n# ", " ")
            number = published.number("accuracy", "gsm8k", setting, file.stem)
            told = re.search(r"published: ([0-9.]+) %", head)
            assert (float(told[1]) if told else None) == (number.value if number else None), file
            assert number is None or "second-hand" in head


def test_every_published_number_has_its_source():
    for entry in published.load()["results"]:
        assert entry["source"] in published.load()["sources"]
        assert entry["setting"] in published.settings()
        assert set(entry["values"]) <= set(registry.names("methods"))
    assert published.number("accuracy", "gsm8k", "llama1b_aug", "kava").citation == (
        "arXiv:2510.02312v1, second-hand"
    )


def paper(groups):
    accuracy, passes = table.paper_tables(groups)
    return cells(accuracy.markdown()), cells(passes.markdown()), accuracy.caption


def test_the_papers_tables_without_any_run():
    accuracy, passes, caption = paper([])
    assert len(accuracy) == len(passes) == 1 + 6 * 10
    assert all(row[3] == "not run" and row[5] == "-" for row in accuracy[1:])
    by = {(row[0], row[2]): row for row in accuracy[1:]}
    assert by["llama1b_aug", "KaVa"][4] == "56.5" and by["qwen05b_aug", "LOTUS"][4] == "-"
    assert {(r[0], r[2]): r[4] for r in passes[1:]}["llama1b_aug", "CoT"] == "65.0"
    assert "no run of ours yet" in caption


def test_ours_beside_the_published_number(tmp_path):
    for seed, value in ((42, 55.0), (123, 57.0)):
        folder = tmp_path / f"kava-seed{seed}"
        make_run(folder, LLAMA.format("kava"), [f"seed={seed}", "train.micro_batch_size=64"],
                 gsm8k=score(value, 1319, 6.8), svamp=score(50.0))  # fmt: skip
    make_run(tmp_path / "pccot-seed42", LLAMA.format("pccot"), ["seed=42"], gsm8k=score(53.0, 1319))
    make_run(tmp_path / "other-seed42", "recipes/quickstart/kava.yaml", synthetic=score(1.0))
    accuracy, passes, caption = paper(results.find([tmp_path]))
    by = {tuple(row[:3]): row[3:] for row in accuracy[1:]}
    source = "arXiv:2510.02312v1, second-hand"
    assert by["llama1b_aug", "gsm8k", "KaVa"] == ["56.0 ± 1.4", "56.5", "-0.5", source]
    assert by["llama1b_aug", "gsm8k", "PCCoT"][:3] == ["53.0 ± 1.5 (1/2)", "53.4", "-0.4"]
    assert by["llama1b_aug", "svamp", "KaVa"] == ["50.0 ± 0.0", "-", "-", "-"]
    assert by["llama1b_aug", "gsm8k", "CoT"][0] == "not run"
    by = {tuple(row[:3]): row[3:] for row in passes[1:]}
    assert by["llama1b_aug", "gsm8k", "KaVa"][:3] == ["6.8", "6.9", "-0.1"]
    assert "left out: other" in caption


def test_another_recipe_gets_no_published_number(tmp_path):
    change = ["kv.eviction.name=crop_right", "num_latents=12"]
    make_run(tmp_path / "crop-seed42", LLAMA.format("kava"), change, gsm8k=score(51.0, 1319))
    accuracy, _, _ = paper(results.find([tmp_path]))
    by = {tuple(row[:3]): row[3:] for row in accuracy[1:]}
    assert by["llama1b_aug", "gsm8k", "KaVa"][:2] == ["not run", "56.5"]
    name = "kava with num_latents=12, kv.eviction.name=crop_right"
    assert by["llama1b_aug", "gsm8k", name] == ["51.0 ± 1.5", "-", "-", "-"]


def test_part_of_the_rows_is_not_the_papers_setting(tmp_path):
    make_run(
        tmp_path / "kava-seed42", LLAMA.format("kava"), ["data.train_rows=1000"], gsm8k=score(9.0)
    )
    (group,) = results.find([tmp_path])
    assert results.setting(group) is None
    natural = make_run(
        tmp_path / "nl" / "kava-seed42", "recipes/llama1b_aug_nl/kava.yaml", gsm8k=score(1)
    )
    (group,) = results.find([natural])
    assert results.setting(group) == "llama1b_aug_nl"


# -- plots ---------------------------------------------------------------------------------------


def test_every_plot_that_the_runs_allow(runs, tmp_path):
    said = list(draw.draw(results.find([runs]), ["synthetic"], tmp_path / "plots"))
    files = {file.name: file for file in (tmp_path / "plots").iterdir()}
    assert sorted(files) == [
        "accuracy_against_passes.png", "accuracy_by_steps.png", "num_latents.png",
        "training_curves.png",
    ]  # fmt: skip
    assert all(file.read_bytes().startswith(PNG) for file in files.values())
    assert all(file.stat().st_size < 300_000 for file in files.values())
    (missing,) = [line for line in said if "not drawn" in line]
    assert missing == "num_iterations.png not drawn: no two runs differ in num_iterations alone"


def test_the_sweep_of_m_is_one_line_with_the_right_points(runs, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(draw, "lines", lambda series, path, *_: drawn.setdefault(path.name, series))
    list(draw.draw(results.find([runs]), ["synthetic"], tmp_path))
    (points,) = drawn["num_latents.png"].values()
    assert sorted(points) == [(6, 40.0, 1.5), (12, 60.0, 1.5), (35, 92.0, 2.8284)]
    assert drawn["accuracy_by_steps.png"]["kava"] == [(1.0, 99.0, None), (2.0, 91.0, None)]


def test_names_that_are_no_methods_get_looks_of_their_own():
    found = styles_of(["kava", "rkv", "crop", "kava", "random"])
    assert found["kava"].label == "KaVa" and found["rkv"].label == "rkv"
    assert len({(one.colour, one.marker) for one in found.values()}) == 4


# -- two runs ------------------------------------------------------------------------------------


def predictions(folder, right, name="gsm8k", **more):
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    rows = [
        {"id": f"q{i}", "answer": str(i), "prediction": "x", "correct": {"numeric": hit}, **more}
        for i, hit in enumerate(right)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "predictions" / f"{name}.jsonl").write_text(text, "utf-8")
    return folder


def test_two_runs_question_by_question(tmp_path):
    a = predictions(tmp_path / "a", [True] * 60 + [False] * 40)
    b = predictions(tmp_path / "b", [True] * 50 + [False] * 10 + [True] * 30 + [False] * 10)
    found = compare(a, b, "gsm8k")
    assert (found.accuracy_a, found.accuracy_b, found.difference) == (60.0, 80.0, 20.0)
    assert (found.only_a, found.only_b, found.both, found.neither) == (10, 30, 50, 10)
    assert found.low < 20 < found.high and found.low > 0 and 0.001 < found.p < 0.01
    back = compare(b, a, "gsm8k")
    assert (back.difference, back.low, back.high, back.p) == (-20, -found.high, -found.low, found.p)


def test_the_order_of_questions_does_not_matter(tmp_path):
    a = predictions(tmp_path / "a", [True, False, True])
    b = predictions(tmp_path / "b", [False, False, True])
    file = b / "predictions" / "gsm8k.jsonl"
    turned = "".join(reversed(file.read_text("utf-8").splitlines(keepends=True)))
    before = compare(a, b, "gsm8k")
    file.write_text(turned, "utf-8")
    assert compare(a, b, "gsm8k") == before and before.only_a == 1


NO_PREDICTION = "evaluation.not-a-prediction"


@pytest.mark.parametrize(
    ("change", "code", "key", "values"),
    [
        (lambda rows: rows[:-1], "evaluation.missing-answers", "q2", (" 1 of the 3 ",)),
        (lambda rows: [{**r, "answer": "9"} for r in rows], "evaluation.other-answer", "q0",
         ("'9'",)),
        (lambda rows: [{**r, "correct": {"string": True}} for r in rows],
         "evaluation.unknown-rule", "numeric", ("line 1:", "string")),
        (lambda rows: [{**r, "id": "q0"} for r in rows], "data.repeated-id", "q0", ("line 2:",)),
        (lambda rows: [{"id": "q0"}], NO_PREDICTION, None, ("line 1:",)),
        (lambda rows: [{"id": "q0", "correct": True}], NO_PREDICTION, None, ("line 1:",)),
        (lambda rows: [{"id": "q0", "correct": ["numeric"]}], NO_PREDICTION, None, ("line 1:",)),
        (lambda rows: [{**rows[0], "id": None}], NO_PREDICTION, None, ("line 1:",)),
        (lambda rows: [{**r, "correct": {"numeric": "false"}} for r in rows],
         "evaluation.not-a-verdict", "numeric", ("line 1:", " 'false'")),
        (lambda rows: [{**r, "correct": {"numeric": None}} for r in rows],
         "evaluation.not-a-verdict", "numeric", ("line 1:", " None")),
        (lambda rows: [5], "data.not-an-object", None, ("line 1:", " 5;")),
    ],
)  # fmt: skip
def test_runs_that_cannot_be_compared(tmp_path, change, code, key, values):
    a = predictions(tmp_path / "a", [True, False, True])
    b = predictions(tmp_path / "b", [True, False, True])
    file = b / "predictions" / "gsm8k.jsonl"
    rows = change([json.loads(line) for line in file.read_text("utf-8").splitlines()])
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with refused(code, key) as told:
        compare(a, b, "gsm8k")
    assert all(value in str(told.value) for value in (str(file), *values))


def test_what_eval_wrote_is_read_whatever_its_questions_hold(tmp_path):
    """U+2028, U+0085 and the like end no line of JSONL."""
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, right in zip(folders, (True, False), strict=True):
        record = {"id": "q0", "question": "a\u2028b\u0085c\x0bd", "answer": "1", "num_steps": 0}
        record |= {"correct": {"numeric": right}, "finished": True}
        file = folder / "predictions" / "gsm8k.jsonl"
        EvaluationResult([record], {}).write_predictions(file)
        assert len(file.read_text("utf-8").splitlines()) > 1
    assert (found := compare(*folders, "gsm8k")).only_a == found.n == 1


def test_a_file_that_is_no_text_and_a_seed_that_is_none(tmp_path):
    a = predictions(tmp_path / "a", [True])
    with refused("evaluation.bad-seed", "seed") as told:
        compare(a, a, "gsm8k", seed=99999999999999999999999)
    assert " 99999999999999999999999 " in str(told.value)
    (a / "predictions" / "gsm8k.jsonl").write_bytes(b'{"id": "\xff"}\n')
    with refused("data.not-utf8") as told:
        compare(a, a, "gsm8k")
    assert "line 1:" in str(told.value)


# -- the commands --------------------------------------------------------------------------------


def call(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_commands(runs, tmp_path):
    said = call("table", runs, "-o", tmp_path / "t").output
    assert "| KaVa | 92.0 ± 2.8 |" in said and "results.csv" in said
    said = call("table", runs, "--paper", "-o", tmp_path / "p").output
    assert (tmp_path / "p" / "table1_accuracy.tex").is_file() and "not run" in said
    assert "written" in call("plot", runs, "-o", tmp_path / "plots").output
    a = predictions(tmp_path / "a", [True, False])
    assert "B - A  +0.00 points" in call("compare", a, a).output
    found = json.loads(call("compare", a, a, "--json").output)
    assert (found["n"], found["p"], found["task"]) == (2, 1.0, "gsm8k")
    predictions(a, [True, True], "svamp")
    unclear = call("compare", a, a).exception
    assert unclear.code == "cli.which-task" and "gsm8k, svamp" in str(unclear)


def test_committed_tables_follow_from_the_committed_results():
    committed = ROOT / "results"
    paper = table.paper_tables(results.find([committed / "quickstart", committed / "gsm8k_small"]))
    made = {
        "paper": paper,
        "quickstart/tables": [
            table.results_table(results.find(sorted((committed / "quickstart").glob("*-seed*"))))
        ],
        "quickstart/ablations/tables": [
            table.results_table(
                results.find(sorted(committed.glob("quickstart/ablations/*-seed*")))
            )
        ],
        "gsm8k_small/tables": [table.results_table(results.find([committed / "gsm8k_small"]))],
    }
    for folder, tables in made.items():
        for one in tables:
            forms = {".md": one.markdown(), ".csv": one.csv(), ".tex": one.latex()}
            for ending, text in forms.items():
                file = committed / folder / f"{one.name}{ending}"
                assert file.read_text("utf-8") == text, file


def test_the_summary_is_what_the_committed_runs_hold():
    folder = ROOT / "results" / "quickstart"
    summary = json.loads((folder / "summary.json").read_text("utf-8"))
    groups = results.find(sorted(folder.glob("*-seed*")))
    rows = {group.name: group.row("synthetic") for group in groups}
    for told in summary["rows"]:
        assert sorted(rows[told["name"]]["accuracies"]) == sorted(told["accuracies"])
    assert (
        yaml.safe_load((ROOT / "src/kava/report/published.yaml").read_text("utf-8"))
        == published.load()
    )
