"""In lm-evaluation-harness a checkpoint scores as in `kava eval`, and its likelihoods are right."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from reference import prefix, run, to_textbook, token_embeds
from refusals import refused
from tiny import reasoner

from kava.data.synthetic import generate
from kava.data.tasks import load_task
from kava.evaluation.runner import evaluate
from kava.reasoning.reasoner import Reasoner

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: kava[eval]")
ROOT = Path(__file__).parents[1]
CHECKPOINT = "checkpoints/quickstart/kava"
TASKS = ("gsm8k", "svamp", "gsm_hard", "multiarith")
RULES = ("numeric", "last_number", "string")
T, ROWS = 3, 8  # fewer iterations than the recipe's, so that some answers are wrong


def harness(*words):
    return subprocess.run(
        [sys.executable, "-m", "kava.lm_eval", *map(str, words)],
        capture_output=True, text=True, cwd=ROOT, timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip


def published(task, number, example):
    """A row in the form in which the task's rows are published."""
    body, ask = example.question.rsplit(". ", 1)
    return {
        "gsm8k": {"question": example.question, "answer": f"lines\n#### {example.answer}"},
        "svamp": {"ID": f"chal-{number}", "Body": f"{body}.", "Question": ask,
                  "Answer": example.answer},
        "gsm_hard": {"input": example.question, "target": float(example.answer)},
        "multiarith": {"question": example.question, "final_ans": example.answer},
    }[task]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Each task with other questions, as the checkpoint knows them."""
    folder, found = tmp_path_factory.mktemp("rows"), {}
    for seed, task in enumerate(TASKS):
        rows = [published(task, n, e) for n, e in enumerate(generate("test", ROWS, seed=seed))]
        found[task] = folder / f"{task}.jsonl"
        found[task].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return found


@pytest.mark.processes
def test_its_command_line_gives_the_scores_of_kava_eval(files, tmp_path):
    metadata = {f"{task}_file": str(file) for task, file in files.items()}
    metadata |= {f"{task}_limit": ROWS for task in TASKS}
    done = harness(
        "--model", "kava", "--model_args", f"checkpoint={CHECKPOINT},num_iterations={T}",
        "--tasks", ",".join(f"kava_{task}" for task in TASKS), "--batch_size", 3,
        "--metadata", json.dumps(metadata), "--output_path", tmp_path, "--log_samples",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    thinker, totals = Reasoner.from_pretrained(ROOT / CHECKPOINT), 0.0
    for task, file in files.items():
        rows = load_task(task, file=str(file), limit=ROWS).examples
        ours = evaluate(thinker, rows, 8, 8, num_iterations=T, rules=RULES)
        samples = next(tmp_path.rglob(f"samples_kava_{task}_*.jsonl")).read_text().splitlines()
        texts = {s["doc"]["id"]: s["resps"][0][0] for s in map(json.loads, samples)}
        assert texts == {p["id"]: p["prediction"] for p in ours.predictions}
        theirs = results[f"kava_{task}"]
        for name, rule in zip(("exact_match", *RULES[1:]), RULES, strict=True):
            percent = 100 * theirs[f"{name},none"]
            assert percent == pytest.approx(ours.summary["accuracy_by_rule"][rule])
        totals += theirs["exact_match,none"]
    assert 0 < totals < len(TASKS)  # neither all wrong nor all right


def test_what_is_wrong_is_one_line_and_status_2(monkeypatch, capsys):
    from kava.lm_eval import __main__ as command
    from kava.lm_eval.model import KavaLM

    with refused("lm_eval.unknown-argument", "checkpont") as told:
        KavaLM.create_from_arg_obj({"checkpont": "x"}, {"batch_size": 1, "device": "cuda:0"})
    assert "'checkpoint'?" in str(told.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="2"):
        command.main()
    assert capsys.readouterr().err.count("\n") == 1


BAD = [
    ({"num_iterations": -1}, "reasoning.bad-number", "num_iterations", "at least 0, not -1"),
    ({"num_iterations": "x"}, "reasoning.bad-number", "num_iterations", "at least 0, not 'x'"),
    ({"num_iterations": 1.5}, "reasoning.bad-number", "num_iterations", "at least 0, not 1.5"),
    ({"max_gen_toks": 0}, "reasoning.bad-number", "max_gen_toks", "at least 1, not 0"),
    ({"batch_size": 0}, "reasoning.bad-number", "batch_size", "at least 1, not 0"),
    ({"batch_size": "many"}, "reasoning.bad-number", "batch_size", "at least 1, not 'many'"),
    ({"batch_size": True}, "reasoning.bad-number", "batch_size", "at least 1, not True"),
    ({"device": "gpu"}, "lm_eval.unknown-device", "gpu", "'gpu'"),
]


@pytest.mark.parametrize(("arguments", "code", "key", "value"), BAD)
def test_arguments_that_are_no_numbers_are_one_line(arguments, code, key, value):
    from kava.lm_eval.model import KavaLM

    with refused(code, key) as told:
        KavaLM(str(ROOT / CHECKPOINT), **arguments)
    assert str(told.value).startswith("model kava: ") and value in str(told.value)


def test_metadata_names_the_fields(tmp_path):
    from kava.lm_eval.rows import load

    (tmp_path / "rows.jsonl").write_text('{"task": "How many?", "answer": "7"}\n')
    metadata = {"svamp_file": str(tmp_path / "rows.jsonl"), "svamp_limit": 1}
    rows = load("svamp", **metadata, svamp_options={"question": "task"})["test"]
    assert rows["question"] == ["How many?"]


@pytest.mark.parametrize(
    ("metadata", "code", "key", "value"),
    [
        ({"svamp_limit": "x"}, "reasoning.bad-number", "svamp_limit", "at least 1, not 'x'"),
        ({"svamp_limit": 0}, "reasoning.bad-number", "svamp_limit", "at least 1, not 0"),
        ({"svamp_limit": [2]}, "reasoning.bad-number", "svamp_limit", "at least 1, not [2]"),
        ({"svamp_file": 5}, "lm_eval.bad-file", "svamp_file", "not 5"),
        ({"svamp_options": "x"}, "data.bad-option", "svamp_options", "not 'x'"),
    ],
)
def test_metadata_that_means_nothing_is_one_line(metadata, code, key, value):
    from kava.lm_eval.rows import load

    with refused(code, key) as told:
        load("svamp", **metadata)
    assert str(told.value).startswith("--metadata: ") and value in str(told.value)


def test_how_many_questions_are_answered_together():
    """The recipe's number where the harness is to choose, which its command line has to say."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    from kava.lm_eval.model import KavaLM

    checkpoint = str(ROOT / CHECKPOINT)
    own = Reasoner.from_pretrained(checkpoint).recipe.eval.batch_size
    assert own != 1
    for given, size in ((None, own), ("auto", own), ("auto:4", own), ("3", 3), (2, 2)):
        made = KavaLM.create_from_arg_obj({"checkpoint": checkpoint}, {"batch_size": given})
        assert made.batch_size == size
    assert EvaluatorConfig().batch_size == 1  # what KavaLM's docstring says of the command line


def test_from_python_a_file_must_hold_the_whole_task(files):
    from kava.lm_eval import evaluate as in_harness

    with refused("data.other-row-count") as told:
        in_harness(ROOT / CHECKPOINT, ["kava_multiarith"], files, batch_size=4)
    assert "has 8 rows" in str(told.value) and "MultiArith test has 180" in str(told.value)
    with refused("lm_eval.unknown-task", "kava_svamp") as told:
        in_harness(ROOT / CHECKPOINT, ["kava_svamp"], {"kava_svamp": files["svamp"]})
    assert "'svamp'?" in str(told.value)


def test_rules_are_reported_beside_exact_match():
    from kava.lm_eval.rows import judge

    found = judge({"answer": "7"}, ["The answer is: 7 of 9"])
    assert found == {"exact_match": 1.0, "last_number": 0.0, "string": 0.0}
    assert judge({"answer": "9"}, ["The answer is: 7 of 9"])["last_number"] == 1.0


# -- the model -----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=("kava", "cot", "codi"))
def model(request, tmp_path_factory):
    from kava.lm_eval.model import KavaLM

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    reasoner("llama", request.param).save_pretrained(folder)
    return KavaLM(str(folder), batch_size=2, max_gen_toks=5)


def asked(*arguments, kind="generate_until"):
    return [SimpleNamespace(args=args, request_type=kind) for args in arguments]


CONTEXTS = ("w1 w2 w3", "w4", "w5 w6 w7 w8 w9 w10 w11", "w12 w12", "w1 w2 w3")
CONTINUATIONS = (" 7", " w3 1", "", " 4 w2 </s> w1", " 9")


def test_answers_are_those_of_one_question_alone_cut_where_the_task_says(model):
    settings = {"until": [], "do_sample": False}
    together = model.generate_until(asked(*((c, settings) for c in CONTEXTS)), disable_tqdm=True)
    alone = [model.generate_until(asked((c, settings)), disable_tqdm=True)[0] for c in CONTEXTS]
    assert together == alone and len(set(together)) > 1
    stop = together[0].split()[-1]
    cut, short, plain = model.generate_until(
        asked(
            (CONTEXTS[0], {"until": ["nowhere", stop]}),
            (CONTEXTS[0], {"until": [], "max_gen_toks": 2}),
            (CONTEXTS[0], {"until": "nowhere"}),
        ),
        disable_tqdm=True,
    )
    assert cut == together[0][: together[0].index(stop)] and plain == together[0]
    assert together[0].startswith(short) and len(short) < len(together[0])
    # The first to occur counts, not the first named; the prompt that is fed is no place for one.
    fed = "" if model.reasoner.recipe.method == "cot" else "The answer is:"
    written = together[0].removeprefix(fed)
    for stops in ([written[4:], written[:6]], ["answer", ":", written[:1]]):
        assert model.generate_until(asked((CONTEXTS[0], {"until": stops})), True) == [fed]


@torch.no_grad()
def slow_likelihood(thinker, context, continuation):
    """Return the likelihood of each token in turn, from the whole sequence without a cache."""
    slow = to_textbook(copy.deepcopy(thinker))
    before = prefix(slow, slow.encoder.question(context), slow.encoder.prompt)
    words = slow.tokenizer(continuation, add_special_tokens=False, split_special_tokens=True)
    total, greedy = 0.0, True
    for token in words["input_ids"]:
        scores = run(slow, before).scores[-1]
        total += scores.log_softmax(-1)[token].item()
        greedy &= int(scores.argmax()) == token
        before = torch.cat((before, token_embeds(slow, [token])))
    return total, greedy


def test_likelihoods_are_those_of_the_answer_after_the_thought(model):
    written = model.generate_until(asked((CONTEXTS[3], {"max_gen_toks": 3})), disable_tqdm=True)[0]
    pairs = list(zip(CONTEXTS, CONTINUATIONS, strict=True))
    pairs.append((CONTEXTS[3], written.removeprefix("The answer is:")))
    found = model.loglikelihood(asked(*pairs, kind="loglikelihood"), disable_tqdm=True)
    for (total, greedy), (context, continuation) in zip(found, pairs, strict=True):
        expected = slow_likelihood(model.reasoner, context, continuation)
        assert total == pytest.approx(expected[0], abs=1e-3) and greedy == expected[1]
    assert found[2] == (0.0, True) and found[-1][1]


def test_what_cannot_be_done_is_refused(model, tmp_path):
    from kava.lm_eval.model import KavaLM

    with refused("lm_eval.samples", "do_sample"):
        model.generate_until(asked(("w1", {"do_sample": True, "temperature": 0.7})))
    with refused("lm_eval.no-likelihood", "loglikelihood_rolling"):
        model.loglikelihood_rolling(asked(("w1",)))
    with refused("lm_eval.no-checkpoint", "checkpoint"):
        KavaLM()
    if not model.reasoner.method.iterates:
        model.reasoner.save_pretrained(tmp_path / "again")
        with refused("reasoning.no-iterations", model.reasoner.recipe.method):
            KavaLM(str(tmp_path / "again"), num_iterations=2)
