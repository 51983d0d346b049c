"""Changed latents reach the answer as if computed without a cache, and chance is chance."""

import copy
import itertools
import json
import random
import shutil

import pytest
import torch
from conftest import pairs
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import all_passes, needs_oracle, to_textbook, token_embeds
from refusals import refused
from tiny import example, reasoner, wrap
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
)
from transformers.masking_utils import eager_mask

from kava.backbones import cache, rope
from kava.backbones.masked_cache import MaskedCache
from kava.cli import app
from kava.data.tasks import Task
from kava.evaluation import ablation, interventions, slices
from kava.evaluation.answers import numeric_match
from kava.evaluation.command import result_folder
from kava.evaluation.interventions import (
    INTERVENTIONS,
    InterventionInputs,
    Latents,
    Mean,
    left_out,
    partners,
    replace_latents,
)
from kava.evaluation.runner import evaluate
from kava.reasoning.answers import Answer
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry

LATENT = [pair for pair in pairs("llama") if registry.find("methods", pair[1]).uses_latents]
LONGEST = 3
EXAMPLES = [example(4, 3), example(9, 5, 1), example(1, 0, 2), example(6, 2, 3), example(9, 1, 4)]


@pytest.fixture(params=LATENT, ids="-".join)
def thinker(request):
    return reasoner(*request.param)


def texts(answers):
    return {name: [answer.text for answer in given] for name, given in answers.items()}


def measured(thinker, batch_size, seed=0):
    return ablation.ablate(thinker, EXAMPLES, batch_size, LONGEST, seed)


# -- laws of the whole table ---------------------------------------------------------------------


def test_as_they_are_is_plain_evaluation(thinker):
    ours = ablation.ablate(thinker, EXAMPLES[:2], 2, LONGEST)["as_they_are"]
    plain = evaluate(thinker, EXAMPLES[:2], 2, LONGEST).predictions
    assert [a.text for a in ours] == [p["prediction"] for p in plain]
    assert [a.forward_passes for a in ours] == [p["forward_passes"] for p in plain]


@pytest.fixture
def first_logits(monkeypatch):
    """Answers are logits of their first token: on random weights texts seldom change."""
    monkeypatch.setattr(Reasoner, "answer", lambda one, reasoning, _: list(scores(one, reasoning)))


def test_what_shares_a_batch_changes_no_answer(thinker, first_logits):
    alone, together = (ablation.ablate(thinker, EXAMPLES[:3], size, LONGEST) for size in (1, 3))
    for name, logits in together.items():
        assert close(torch.stack(alone[name]), torch.stack(logits)), name


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_nor_does_it_change_a_text(family):
    thinker = reasoner(family)
    assert texts(measured(thinker, 1)) == texts(measured(thinker, 3))


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_an_order_is_changed_only_where_there_is_one(family):
    found = ablation.ablate(reasoner(family), EXAMPLES[:2], 2, 2)
    left = left_out(reasoner(family))
    assert ("shuffled" in left) == (family == "gpt2") == ("shuffled" not in found)
    assert found.keys() >= INTERVENTIONS.keys() - left.keys()


def test_another_seed_draws_otherwise(first_logits):
    one, two = (measured(reasoner(), 5, seed) for seed in (0, 1))
    changed = {name for name in one if not close(torch.stack(one[name]), torch.stack(two[name]))}
    assert changed == {"noise", "shuffled", "swapped"}


@pytest.mark.parametrize("method", ("kava", "pccot", "lotus"))
def test_iterations_go_from_0_to_those_of_the_recipe(method):
    thinker = reasoner("llama", method)
    found = measured(thinker, 3)
    assert [n for n in found if n.startswith("it")] == ["iterations_0", "iterations_1",
                                                        "iterations_2"]  # fmt: skip
    assert found["iterations_2"] == found["as_they_are"]
    for t in range(3):
        plain = evaluate(thinker, EXAMPLES, 5, LONGEST, num_iterations=t).predictions
        assert [a.text for a in found[f"iterations_{t}"]] == [p["prediction"] for p in plain]


def test_one_latent_has_no_other_order():
    found = texts(measured(reasoner(num_latents=1), 3))
    assert found["shuffled"] == found["as_they_are"]
    orders = [interventions.draw_other_order(2, random.Random(seed)) for seed in range(20)]
    assert orders == [[1, 0]] * 20


def test_a_training_goes_on_as_it_was():
    thinker = reasoner()
    thinker.train()
    seen = []
    ablation.ablate(thinker, EXAMPLES[:3], 2, 2, on_batch=seen.append)
    assert thinker.training and seen == [2, 3]


# -- what is put in the latents' place -----------------------------------------------------------


@torch.no_grad()
def scene_of(thinker, own, other, seed=0):
    """A scene, and the thinking that it was taken from."""
    reasoning = thinker.think([e.question for e in own])
    theirs = Latents.from_reasoning(thinker.think([e.question for e in other]))
    draws = [random.Random(f"{seed}/{e.id}") for e in own]
    average, ours = Mean(), Latents.from_reasoning(reasoning)
    for latents in (ours, theirs):
        average.add(thinker.lm, latents)
    averaged = average.at_positions_of(thinker.lm, ours)
    return InterventionInputs(thinker.lm, ours, theirs, averaged, draws), reasoning


@torch.no_grad()
def slow_latents(thinker, question, shifts):
    """Shift to keys and values [H, M, D] per layer of a question thought about without a cache.

    The whole sequence stands as many positions further on. Rotary embeddings see distances alone,
    so that every state is as it was, and the keys are those of the other place.
    """
    needs_oracle(thinker.recipe.method)
    slow = to_textbook(copy.deepcopy(thinker))
    text = token_embeds(slow, slow.encoder.question(question))
    latents = all_passes(slow, text)[-1]
    whole = torch.cat((text, slow.special_tokens["bot"][None], latents))
    past, first = DynamicCache(), len(text) + 1
    slow.lm(
        inputs_embeds=whole.expand(len(shifts), -1, -1),
        position_ids=torch.arange(len(whole)) + torch.tensor(shifts)[:, None],
        past_key_values=past,
    )
    return {
        shift: [(layer.keys[n, :, first:], layer.values[n, :, first:]) for layer in past.layers]
        for n, shift in enumerate(shifts)
    }


def close(a, b, tolerance=1e-4):
    return torch.allclose(a, b, atol=tolerance, rtol=tolerance)


def same(ours, row, theirs):
    return all(
        close(keys[row], k) and close(values[row], v)
        for (keys, values), (k, v) in zip(ours, theirs, strict=True)
    )


def test_swapped_latents_are_the_partners_as_they_would_be_here(thinker):
    own, other = EXAMPLES[:3], EXAMPLES[2::-1]  # the middle one is its own partner
    scene, _ = scene_of(thinker, own, other)
    swapped = INTERVENTIONS["swapped"](scene)
    rotates = hasattr(thinker.lm.base_model, "rotary_emb")
    for row, (one, partner) in enumerate(zip(own, other, strict=True)):
        lengths = [len(thinker.encoder.question(e.question)) for e in (one, partner)]
        shift = lengths[0] - lengths[1] if rotates else 0
        assert same(swapped, row, slow_latents(thinker, partner.question, [shift])[shift])


def test_with_itself_as_partner_nothing_is_swapped(thinker):
    scene, _ = scene_of(thinker, EXAMPLES, EXAMPLES)
    for ours, own in zip(
        INTERVENTIONS["swapped"](scene), scene.own_latents.key_values, strict=True
    ):
        assert all(close(a, b, 1e-5) for a, b in zip(ours, own, strict=True))


def test_shuffled_latents_are_turned_to_their_new_places(thinker):
    if left_out(thinker):
        return  # no order: the test of the rows says so
    scene, _ = scene_of(thinker, EXAMPLES[:2], EXAMPLES[:2])
    shuffled = INTERVENTIONS["shuffled"](scene)
    count = scene.own_latents.positions.shape[1]
    for row, one in enumerate(EXAMPLES[:2]):
        at = slow_latents(thinker, one.question, range(1 - count, count))
        values = at[0][0][1]
        order = [
            next(j for j in range(count) if close(values[:, j], shuffled[0][1][row, :, i]))
            for i in range(count)
        ]
        assert sorted(order) == list(range(count)) != order
        for layer, (keys, _) in enumerate(shuffled):
            for i, j in enumerate(order):
                expected = at[i - j][layer][0][:, j]
                assert close(keys[row, :, i], expected)


def test_keys_moved_there_and_back_are_the_same(family):
    thinker = reasoner(family)
    scene, _ = scene_of(thinker, EXAMPLES, EXAMPLES)
    here, pairs = scene.own_latents.positions, scene.own_latents.key_values
    there = here + torch.tensor([[3], [-2], [40], [0], [11]])
    moved = rope.reposition_keys(thinker.lm, pairs, here, there)
    back = rope.reposition_keys(thinker.lm, moved, there, here)
    for own, other, again in zip(pairs, moved, back, strict=True):
        assert close(own[0], again[0], 1e-5) and torch.equal(own[1], other[1])
        rotates = hasattr(thinker.lm.base_model, "rotary_emb")
        assert close(own[0][0], other[0][0]) != rotates
        assert close(own[0][3], other[0][3], 1e-5)


def test_zeroed_is_zero(thinker):
    scene, _ = scene_of(thinker, EXAMPLES[:2], EXAMPLES[:2])
    for pair, own in zip(INTERVENTIONS["zeroed"](scene), scene.own_latents.key_values, strict=True):
        assert all(t.shape == o.shape and not t.any() for t, o in zip(pair, own, strict=True))


def test_noise_is_as_long_and_points_elsewhere(thinker):
    scene, _ = scene_of(thinker, EXAMPLES[:2], EXAMPLES[:2])
    for pair, own in zip(INTERVENTIONS["noise"](scene), scene.own_latents.key_values, strict=True):
        for drawn, before in zip(pair, own, strict=True):
            assert close(drawn.norm(dim=-1), before.norm(dim=-1))
            angles = torch.cosine_similarity(drawn, before, dim=-1)
            assert angles.abs().mean() < 0.6 and angles.min() < 0 < angles.max()
        assert not close(pair[0], pair[1], 0.1)


# -- what the answer reads -----------------------------------------------------------------------

PLANTED: dict = {}


def _planted(module, query, key, value, attention_mask, scaling=None, **options):
    """Textbook attention over keys and values of which some columns are replaced."""
    columns, pairs = PLANTED["columns"], PLANTED["pairs"][module.layer_idx]
    key, value = key.clone(), value.clone()
    key[0, :, columns], value[0, :, columns] = pairs
    textbook = AttentionInterface()["textbook"]
    return textbook(module, query, key, value, attention_mask, scaling=scaling, **options)


AttentionInterface.register("planted", _planted)
AttentionMaskInterface.register("planted", eager_mask)


@torch.no_grad()
def slow_scores(thinker, question, pairs, prompt):
    """Logits after the prompt, whole sequence at once; `pairs` [H, M, D] for the latents.

    The latents' own inputs do not matter: nothing but their keys and values is read.
    """
    slow = copy.deepcopy(thinker)
    slow.lm.set_attn_implementation("planted")
    text = token_embeds(slow, slow.encoder.question(question))
    count, special = pairs[0][0].shape[1], slow.special_tokens
    columns = slice(len(text) + 1, len(text) + 1 + count)
    PLANTED.update(columns=columns, pairs=pairs)
    blank = torch.zeros(count, text.shape[1])
    prompt = token_embeds(slow, prompt)
    whole = torch.cat((text, special["bot"][None], blank, special["eot"][None], prompt))
    return slow.lm(inputs_embeds=whole[None], past_key_values=DynamicCache()).logits[0, -1]


@torch.no_grad()
def scores(thinker, reasoning):
    """Logits [B, vocabulary] after the prompt, "The answer is:" or a method's own first token."""
    real = torch.ones_like(reasoning.prompt, dtype=torch.bool)
    output, _ = thinker.extend(reasoning.cache, thinker.embed(reasoning.prompt), real)
    return thinker.logits(output.last_hidden_state[:, -1])


def test_the_answer_reads_what_was_put_there(thinker):
    scene, reasoning = scene_of(thinker, EXAMPLES[:2], EXAMPLES[1:3])
    before = scores(thinker, reasoning)
    without_effect = {"as_they_are", *left_out(thinker)}
    for name, intervene in INTERVENTIONS.items():
        pairs = intervene(scene)
        changed = replace_latents(thinker, reasoning, scene.own_latents, pairs)
        ours = scores(thinker, changed)
        for row, one in enumerate(EXAMPLES[:2]):
            here, prompt = [(k[row], v[row]) for k, v in pairs], changed.prompt[row].tolist()
            expected = slow_scores(thinker, one.question, here, prompt)
            assert close(ours[row], expected, 1e-3), name
        assert close(ours, before, 1e-3) == (name in without_effect), name


def test_removed_latents_are_latents_behind_a_mask(thinker):
    scene, reasoning = scene_of(thinker, EXAMPLES, EXAMPLES)
    pairs = INTERVENTIONS["removed"](scene)
    gone = replace_latents(thinker, reasoning, scene.own_latents, pairs)
    mask = reasoning.cache.attention_mask.clone()
    mask[:, -1 - scene.own_latents.positions.shape[1] : -1] = False
    hidden = MaskedCache(reasoning.cache.past_key_values, mask).crop(mask.shape[1] - 1)
    eot = thinker.special("eot").expand(len(mask), 1, -1)
    with torch.no_grad():
        _, context = thinker.extend(hidden, eot, torch.ones(len(mask), 1, dtype=torch.bool))
    columns = cache.key_values(context.past_key_values, -1)
    ours = cache.key_values(gone.cache.past_key_values, -1)
    assert all(
        close(a, b) for p in zip(columns, ours, strict=True) for a, b in zip(*p, strict=True)
    )
    assert torch.equal(context.next_position, gone.cache.next_position)


# -- the mean, and slices ------------------------------------------------------------------------


@pytest.mark.parametrize("family", ("llama", "gpt2"))
def test_the_mean_is_that_of_every_question_at_one_place(family):
    thinker = reasoner(family)
    asked = [EXAMPLES[i] for i in (1, 0, 2, 3)]  # the longest first: the others move further on
    scene, _ = scene_of(thinker, asked[:2], asked[2:])
    here = len(thinker.encoder.question(asked[0].question))
    every = []
    for one in asked:
        shift = here - len(thinker.encoder.question(one.question)) if family == "llama" else 0
        every.append(slow_latents(thinker, one.question, [shift])[shift])
    for layer, (keys, values) in enumerate(INTERVENTIONS["mean"](scene)):
        assert close(keys[0], torch.stack([pairs[layer][0] for pairs in every]).mean(0))
        assert close(values[0], torch.stack([pairs[layer][1] for pairs in every]).mean(0))


def test_a_slice_is_exchanged_and_nothing_else():
    own, other = ([(torch.full((1, 1, 2, 3), v + i), torch.full((1, 1, 2, 3), v + i + 0.5))
                   for i in range(4)] for v in (0, 10))  # fmt: skip
    found = slices.read_slice("values:1-2", 4).combine(other, own)
    assert [(k[0, 0, 0, 0].item(), v[0, 0, 0, 0].item()) for k, v in found] == [
        (0, 0.5), (1, 11.5), (2, 12.5), (3, 3.5),
    ]  # fmt: skip
    names = list(slices.rows([slices.read_slice("keys:3", 4)], own, other, own))
    assert names == ["swapped_keys_3", "swapped_all_but_keys_3", "mean_keys_3"]
    usual = slices.usual_slices(3)
    assert [one.name for one in usual] == ["keys", "values", "both_0-0", "both_1-2"]
    assert not any("all_but" in name for name in slices.rows(usual, own[:3], other[:3], own[:3]))


@pytest.mark.parametrize(
    "text,code", (("key", "bad-slice"), ("keys:", "bad-slice"), ("keys:1-", "bad-slice"),
                  ("keys:4", "no-such-layer"), ("both:2-1", "no-such-layer")),
)  # fmt: skip
def test_a_slice_that_is_none_is_refused(text, code):
    with refused(f"evaluation.{code}", text):
        slices.read_slice(text, 4)


def test_the_shares_of_a_slice_are_counted_by_hand():
    values = slices.read_slice("values", 1)
    partner_of = [1, 2, 3, 0]
    answers = {
        "as_they_are": [says(n) for n in (1, 2, 3, 3)],  # row 2 says what its partner says
        "swapped": [says(n) for n in (2, 3, 9, 1)],
        "swapped_values": [says(n) for n in (2, "3.0", 3, 9)],
        "swapped_all_but_values": [says(n) for n in (1, 3, 9, 3)],
        "mean": [says(n) for n in (1, 0, 0, 0)],
        "mean_values": [says(n) for n in (1, 2, 0, 0)],
    }
    gold = (1, 2, 3, 4)
    right = {
        name: [one.text == f"The answer is: {g}" for one, g in zip(given, gold, strict=True)]
        for name, given in answers.items()
    }
    whole, part = slices.measure_slices([values], 1, answers, right, partner_of)
    third = pytest.approx(1 / 3, abs=1e-4)
    two_thirds, counted = pytest.approx(2 / 3, abs=1e-4), {"n": 3, "n_right": 3}
    assert whole == counted | {
        "name": "latents", "sufficiency": 1.0, "selectivity": 0.0, "necessity": two_thirds,
        "passes": True,
    }  # fmt: skip
    assert part == counted | {
        "name": "values", "sufficiency": two_thirds, "selectivity": third, "necessity": third,
        "passes": False,
    }  # fmt: skip
    nothing = {name: [says(1)] * 4 for name in answers}
    wrong = {name: [False] * 4 for name in answers}
    (_, part) = slices.measure_slices([values], 1, nothing, wrong, partner_of)
    assert part["sufficiency"] is part["necessity"] is None and not part["passes"]


def test_all_slices_together_are_the_latents_of_the_other_question():
    thinker = reasoner()
    everything = [slices.read_slice("both", 2)]
    found = texts(ablation.ablate(thinker, EXAMPLES[:3], 2, LONGEST, parts=everything))
    assert found["swapped_both"] == found["swapped"]
    assert found["swapped_all_but_both"] == found["as_they_are"]
    assert found["mean_both"] == found["mean"]


# -- partners, chance, rows ----------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=30), st.integers(0, 99))
def test_everyone_has_a_partner_and_nobody_is_their_own(sizes, seed):
    sizes = sizes * 2  # at least two of each
    found = partners(sizes, seed)
    assert sorted(found) == list(range(len(sizes)))
    assert all(i != partner and sizes[i] == sizes[partner] for i, partner in enumerate(found))
    assert found == partners(sizes, seed)


def says(number):
    return Answer(f"The answer is: {number}", 3, 2, 1, True)


GOLD = ["1", "2", "2", "3", "2.0", "3"]


def test_chance_is_what_other_questions_answers_score():
    asked = [example(3, 0, i, gold) for i, gold in enumerate(GOLD)]
    others = list(itertools.permutations([float(gold) for gold in GOLD], 2))
    level = ablation.chance(asked)
    assert level["other_question"] == pytest.approx(
        100 * sum(a == b for a, b in others) / len(others), abs=0.01
    )
    assert level["most_frequent"] == 50
    # By the headline nothing is right where the answer is no number.
    worded = [example(3, 0, i, gold) for i, gold in enumerate(("yes", "yes", "4", "4"))]
    hits = [numeric_match("The answer is: yes", one.answer) for one in worded]
    assert not any(hits) and ablation.chance(worded) == {
        "other_question": pytest.approx(100 * 2 / 12, abs=0.01), "most_frequent": 50,
    }  # fmt: skip
    assert ablation.chance(worded[:2]) == {"other_question": 0, "most_frequent": 0}


def test_rows_count_the_partners_answers():
    asked = [example(3, 0, i, gold) for i, gold in enumerate(GOLD)]
    theirs = [says(GOLD[i]) for i in partners([1] * len(GOLD), 7)]
    right = [says(gold) for gold in GOLD]
    given = {"as_they_are": right, "zeroed": [says(2)] * 6, "swapped": theirs}
    first, zeroed, swapped = ablation.measure(asked, given, seed=7)["rows"]
    assert first["accuracy"] == 100 and first["difference_interval"] == [0, 0]
    assert first["mcnemar_p"] == 1 and first["changed"] == 0 and first["forward_passes"] == 3
    assert zeroed["accuracy"] == 50 and zeroed["difference"] == -50
    assert zeroed["changed"] == pytest.approx(100 * 4 / 6, abs=0.01)  # "2.0" is another text
    assert zeroed["mcnemar_p"] == 0.25  # three lost, none won: 2 / 2^3
    assert swapped["partner_accuracy"] == 100 > swapped["accuracy"]
    low, high = zeroed["difference_interval"]
    assert -100 <= low < -50 < high <= 0


# -- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    reasoner("llama", "kava", eval={"max_new_tokens": 4}).save_pretrained(folder / "checkpoint")
    return folder


def command(*words):
    app([*map(str, words)], standalone_mode=False)


def test_the_command_writes_table_plot_and_predictions(run, tmp_path, capsys):
    command("ablate", run, "--task", "synthetic", "--limit", 9, "-o", tmp_path, "--json")
    printed = json.loads(capsys.readouterr().out)
    table = json.loads((tmp_path / "ablation.json").read_text())
    assert table == printed and table["task"] == "synthetic"
    assert {"versions", "machine", "command", "commit"} <= table.keys()
    names = [row["name"] for row in table["rows"]]
    parts = ["keys", "values", "both_0-0", "both_1-1"]
    of_slices = [f"{what}_{part}" for part in parts for what in ("swapped", "mean")]
    assert sorted(names) == sorted(
        [*INTERVENTIONS, *of_slices, "iterations_0", "iterations_1", "iterations_2"]
    )
    assert [one["name"] for one in table["slices"]] == ["latents", *parts]
    for row in table["rows"]:
        lines = (tmp_path / "predictions" / "ablation" / f"{row['name']}.jsonl").read_text()
        records = [json.loads(line) for line in lines.splitlines()]
        assert len(records) == row["n"] == 9
        right = sum(record["correct"]["numeric"] for record in records)
        assert row["accuracy"] == pytest.approx(100 * right / 9, abs=0.01)
        assert all("question" not in record for record in records)
    plot = (tmp_path / "ablation.png").read_bytes()
    assert plot.startswith(b"\x89PNG") and 5_000 < len(plot) < 150_000


def test_without_json_the_table_is_shown_and_the_run_folder_gets_it(run, capsys):
    command("ablate", run, "--task", "synthetic", "--limit", 3, "--batch-size", 2)
    said = capsys.readouterr().out
    assert [line.split()[0] for line in said.splitlines()[2:9]] == ["as", *list(INTERVENTIONS)[1:]]
    assert all(word in said for word in ("sufficiency", "selectivity", "necessity", "0.80"))
    assert "by chance" in said and str(run) in said.replace("\n", "")
    assert (run / "ablation.json").is_file()
    assert "not plain numbers" not in said
    with refused("evaluation.other-task", "synthetic") as told:
        other = Task("other", 1, "test", EXAMPLES, "made up")
        ablation.ablate_task(reasoner(), other, run)
    assert "'synthetic'" in str(told.value) and "'other'" in str(told.value)


def test_answers_without_a_number_are_said_below_the_table(run, tmp_path, capsys):
    rows = [{"question": "w1 w2", "answer": "yes"}, {"question": "w3", "answer": "no"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command("ablate", run, "--task", "rows", "--file", tmp_path / "own.jsonl", "-o", tmp_path)
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 right answers are not plain numbers, such as 'yes'" in said


def test_bad_input_says_what_would_be_right(run, tmp_path):
    synthetic = ("--task", "synthetic")
    with refused("evaluation.too-few-examples") as told:
        command("ablate", run, *synthetic, "--limit", 1, "-o", tmp_path / "new")
    assert "not 1;" in str(told.value)
    alone = shutil.copytree(run / "checkpoint", tmp_path / "alone")
    with refused("evaluation.not-a-run", str(alone)) as told:
        command("ablate", alone, *synthetic)
    assert "-o FOLDER" in str(told.value)
    assert result_folder("ablate", str(run / "checkpoint"), None) == run
    with refused("data.bad-option-word", "count") as told:
        command("ablate", run, *synthetic, "--option", "count")
    assert str(told.value).startswith("ablate: --option count: ")
    (tmp_path / "ablation.json").write_text("[]")
    with refused("evaluation.not-a-result", str(tmp_path / "ablation.json")):
        command("ablate", run, *synthetic, "--limit", 2, "-o", tmp_path)
    assert not (tmp_path / "new").exists()


def test_a_seed_out_of_range_is_known_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ablation, "ablate", lambda *_: pytest.fail("questions were asked"))
    with refused("evaluation.bad-seed", "seed") as told:
        command("ablate", run, "--task", "synthetic", "--seed", "9" * 23, "-o", tmp_path / "new")
    assert f"seed {'9' * 23} " in str(told.value)


@pytest.mark.parametrize("method", ("cot", "icot", "no_cot"))
def test_methods_without_latents_are_named(method):
    with refused("evaluation.no-latents", method) as told:
        ablation.ablate(reasoner("llama", method), EXAMPLES, 2, 2)
    assert f"'{method}'" in str(told.value) and "coconut, codi, kava, lotus" in str(told.value)


def test_keys_that_cannot_be_moved_are_refused():
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    config = AutoConfig.for_model(
        "glm4", **shape, num_key_value_heads=2, intermediate_size=64, vocab_size=60, pad_token_id=0
    )  # turns neighbouring features, not halves
    thinker = wrap(AutoModelForCausalLM.from_config(config, dtype=torch.float32))
    with refused("backbones.unknown-rotation", "glm4"):
        ablation.ablate(thinker, EXAMPLES, 2, 2)
