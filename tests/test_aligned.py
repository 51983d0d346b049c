"""Aligned KaVa: one set of tokens for all heads, those that later steps read."""

from pathlib import Path

import pytest
import torch
from refusals import refused
from tiny import batch, example, reasoner, stepped

from kava.backbones import masks
from kava.data.synthetic import generate
from kava.evaluation import ablation
from kava.evaluation.interventions import INTERVENTIONS, Latents, left_out
from kava.evaluation.runner import evaluate
from kava.inspect.look import inspect_question
from kava.reasoning import batching
from kava.reasoning.latents import windowed
from kava.reasoning.latents.windowed import Ending
from kava.reasoning.methods import prefill_question, teacher_forward
from kava.reasoning.methods._base import eot_suffix
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import load_resolved
from kava.types import Example

ROOT = Path(__file__).resolve().parent.parent
#: The same products, in matrices of other sizes, are rounded differently, by the processor.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def choose(thinker, data):
    with torch.no_grad():
        question = prefill_question(thinker, data)
        teacher = teacher_forward(thinker, question, data, queries=thinker.method.queries)
        return thinker.method.kv.choose(data, teacher)


def test_all_heads_of_all_layers_keep_the_same_tokens():
    later = {"kv": {"eviction": {"name": "later_steps"}}}
    for changes in ({}, later, {"latent_readout": {"width": 2}, "num_latents": 6} | later):
        thinker = reasoner(method="aligned", **changes)
        first, *others = choose(thinker, batch(thinker, [example(3, 9), stepped(4, (3, 1, 5))]))
        for one in (first, *others):
            assert (one.columns == first.columns[:, :1]).all()
            assert (one.slot_mask == first.slot_mask[:, :1]).all()


@pytest.mark.parametrize("backbone, form", (("backbone", "equation"), ("sentences", "sentences")))
def test_one_latent_for_each_step_stands_for_its_result(backbone, form):
    """No label says so: the results are what later steps of a trained backbone attend to."""
    changes = ["method=aligned", "num_latents=5", "latent_readout.width=1"]
    changes += [
        f"backbone={ROOT}/checkpoints/quickstart/{backbone}",
        "kv.eviction.name=later_steps",
    ]
    recipe = ROOT / "recipes/quickstart/ablations/rkv.yaml"
    thinker = Reasoner.build(load_resolved(recipe, changes))
    examples = generate("validation", 50, seed=3, form=form)
    data = batching.collate(thinker.encoder.rows(examples), 0)
    kept = choose(thinker, data)[0]
    right = []
    for i, one in enumerate(examples):
        results = [step.split("=")[1].split()[0].rstrip(">.") for step in one.steps]
        tokens = data["steps"][i, kept.columns[i, 0][kept.slot_mask[i, 0]]]
        words = [thinker.tokenizer.decode([token]).strip() for token in tokens]
        right += [word == result for word, result in zip(words, results, strict=True)]
    assert sum(right) / len(right) > (0.8 if form == "equation" else 0.98)


@pytest.mark.parametrize("options, first, second, last", [
    ({"window": None}, {1, 2, 3, 4}, {2, 3, 4}, {4}),
    ({"window": None, "readout_after": "last_pass"}, {4}, {4}, {4}),
    ({"window": 2}, {1}, {2}, {4}),
    ({"window": 1}, {1}, {2}, {4}),  # T is one more than needed, so each has two passes
    ({"window": 3}, {1, 2}, {2}, {4}),  # T is one less than needed: steps 1 and 2 begin together
])  # fmt: skip
def test_a_step_is_supervised_from_its_own_pass_on(options, first, second, last):
    """Four steps with blocks of two latents, and T = 4."""
    sizes = {"num_latents": 8, "num_iterations": 4, "latent_readout": {"width": 2}}
    thinker = reasoner(method="aligned", **sizes, method_options=options)
    data = thinker.apply_stage(batch(thinker, [stepped(4, (3, 1, 5, 2))]))
    found = {i: set() for i in range(8)}
    pairs = zip(data["readout_passes"].tolist(), data["readout_latents"].tolist(), strict=True)
    for t, latent in pairs:
        found[latent].add(t)
    # The second step has a single token, so latent 3 stands for none.
    assert (found[0], found[1]) == (first, first) and (found[2], found[3]) == (second, set())
    assert found[6] == found[7] == last


def test_heads_that_keep_other_tokens_are_refused():
    with refused("reasoning.not-shared", "kv.eviction.shared"):
        reasoner(method="aligned", kv={"weight": 1.0, "eviction": {"shared": "none"}})


def test_blocks_that_do_not_fill_the_latents_are_refused():
    with refused("reasoning.uneven-blocks", "num_latents"):
        reasoner(method="aligned", num_latents=5, latent_readout={"width": 2})


@pytest.mark.parametrize("changes", ({}, {"latent_update": "residual"}))
def test_a_window_of_all_passes_is_jacobi_iteration(changes):
    sizes = {"num_latents": 6, "num_iterations": 3, "latent_readout": {"width": 2}} | changes
    states = []
    for window in (None, 4, 7):
        thinker = reasoner(method="aligned", **sizes, method_options={"window": window})
        states.append(thinker.think(["w1 w2 w3", "w4"]).latent_states)
    for one in states[1:]:
        torch.testing.assert_close(one, states[0], **CLOSE)


def test_a_window_does_not_find_its_number_of_iterations():
    thinker = reasoner(method="aligned")
    with refused("reasoning.no-auto", "num_iterations"):
        thinker.generate("w1", num_iterations="auto")
    assert reasoner(method="aligned", method_options={"window": None}).generate(
        "w1", num_iterations="auto"
    )


def test_passes_that_are_not_computed_cannot_be_supervised():
    with refused("reasoning.supervised-passes", "kv.supervise"):
        reasoner(method="aligned", kv={"weight": 1.0, "supervise": "all"})


@torch.no_grad()
def test_the_inputs_of_the_last_pass_give_what_is_cached_in_one_pass():
    """So that other engines can continue from embeddings (`Reasoner.prompt_embeds`)."""
    sizes = {"num_latents": 8, "num_iterations": 4, "latent_readout": {"width": 2}}
    thinker = reasoner(method="aligned", **sizes, method_options={"window": 2})
    past = thinker.think("w1 w2 w3").cache.past_key_values
    embeds = thinker.prompt_embeds("w1 w2 w3")
    once = thinker.lm(inputs_embeds=embeds, use_cache=True).past_key_values
    for cached, whole in zip(past.layers, once.layers, strict=True):
        columns = cached.keys.shape[2]
        torch.testing.assert_close(cached.keys, whole.keys[:, :, :columns], **CLOSE)
        torch.testing.assert_close(cached.values, whole.values[:, :, :columns], **CLOSE)


def test_latents_that_have_not_begun_decode_to_nothing():
    thinker = reasoner(method="aligned", num_latents=8, num_iterations=4,
                       latent_readout={"width": 2}, method_options={"window": 2})  # fmt: skip
    found = inspect_question(thinker, "w1 w2", ["w3", "w4"], "7", max_new_tokens=3)
    begun = [[any(text for text, _ in top) for top in tops] for tops in found.decoded.passes]
    assert begun == [[i < 2 * (t + 1) for i in range(8)] for t in range(5)]


def thinking(window, iterations):
    """What thinks about some of three questions, and an ending that differs between them."""
    sizes = {"num_latents": 8, "num_iterations": iterations, "latent_readout": {"width": 2}}
    thinker = reasoner(method="aligned", **sizes, method_options={"window": window, "stop": True})
    schedule = thinker.method.schedule(iterations)
    questions = thinker.encoder.questions(["w1 w2 w3", "w4", "w5 w9 w6 w7 w8"])

    def think(rows, ending):
        ids, mask = masks.pad([questions[row] for row in rows], "left", 0)
        context, _ = prefill_question(thinker, {"question": ids, "question_mask": mask})
        suffix = eot_suffix(thinker, context)
        return windowed.think(thinker, context, schedule, suffix, ending=ending)

    states = think(range(3), None).states[-1][:, 1::2][:, :-1]  # after each block but the last
    direction = states[0, 0] - states[1, 0]
    edge = (states @ direction).median()
    return think, Ending(None, lambda states: states @ direction > edge)


@torch.no_grad()
@pytest.mark.parametrize("window, iterations", ((3, 5), (3, 8), (4, 6), (3, 3), (3, 2)))
def test_where_latents_end_does_not_depend_on_the_batch(window, iterations):
    think, ending = thinking(window, iterations)
    together = think(range(3), ending)
    sizes = []
    for row in range(3):
        alone = think([row], ending)
        sizes.append(alone.latents.shape[1])
        assert alone.iterations.item() == together.iterations[row]
        torch.testing.assert_close(together.latents[row, : sizes[-1]], alone.latents[0], **CLOSE)
        torch.testing.assert_close(together.suffix[row], alone.suffix[0], **CLOSE)
    assert together.latents.shape[1] == max(sizes) and len(set(sizes)) > 1
    known = think(range(3), Ending(torch.tensor(sizes), ending.ends))  # as in training
    torch.testing.assert_close(known.suffix, together.suffix, **CLOSE)


def stopping():
    """A model that ends its latents, and questions for which it has different numbers of them."""
    sizes = {"num_latents": 8, "num_iterations": 5, "latent_readout": {"width": 2}}
    thinker = reasoner(method="aligned", **sizes, method_options={"stop": True})
    questions = ["w1 w2 w3", "w4", "w5 w9 w6 w7 w8"]
    ends = thinker.think(questions).latent_states[:, 1::2][:, :-1]
    with torch.no_grad():  # the answer prompt follows the first block of the first question
        toward = ends[0, 0] - ends[1, 0]
        thinker.lm.get_output_embeddings().weight[thinker.encoder.prompt[0]] = 9 * toward
    return thinker, questions


def test_a_model_that_stops_answers_alone_as_in_a_batch():
    thinker, questions = stopping()
    found = thinker.think(questions)
    assert found.forward_passes == max(found.iterations) and len(set(found.iterations)) > 1
    together = thinker.answer(found, 4)
    for question, one in zip(questions, together, strict=True):
        (alone,) = thinker.answer(thinker.think([question]), 4)
        assert (alone.text, alone.forward_passes) == (one.text, one.forward_passes)
        seen = inspect_question(thinker, question, max_new_tokens=4).about
        size = thinker.think([question])
        assert (seen.latents, seen.iterations) == (size.latent_states.shape[1], *size.iterations)
        assert seen.forward_passes == one.forward_passes


@pytest.mark.parametrize("changes", (
    {"method_options": {"stop": True, "window": 2}, "latent_readout": {"width": 2}},
    {"method_options": {"stop": True, "window": None}, "latent_readout": {"width": 2}},
    {"method_options": {"stop": True}},
    {"method_options": {"stop": True}, "latent_readout": {"width": 2, "target": "own"}},
    {"method_options": {"stop": True}, "latent_readout": {"width": 2, "weight": 0.0}},
))  # fmt: skip
def test_what_cannot_stop_is_refused(changes):
    with refused("reasoning.cannot-stop", "method_options.stop"):
        reasoner(method="aligned", num_latents=4, **changes)


def test_latents_are_exchanged_between_questions_with_as_many():
    thinker, questions = stopping()
    asked = [Example(str(i), text, (), "7") for i, text in enumerate(questions)]
    sizes = ablation.count_latents(thinker, asked, 3)
    (single,) = (i for i, size in enumerate(sizes) if sizes.count(size) == 1)
    with refused("evaluation.too-few-examples", str(sizes[single])):
        ablation.ablate(thinker, asked, 3, 2)
    with refused("evaluation.latents-vary", "latents"):
        Latents.from_reasoning(thinker.think(questions))
    found = ablation.ablate(thinker, asked * 2, 3, 2)
    plain = evaluate(thinker, asked * 2, 5, 2).predictions
    own = [(one.text, one.forward_passes) for one in found["as_they_are"]]
    assert own == [(one["prediction"], one["forward_passes"]) for one in plain]
    # The only other question with as many latents is its own copy.
    for name in ("swapped", "mean"):
        assert [one.text for one in found[name]][single::3] == [own[single][0]] * 2
    assert found.keys() >= INTERVENTIONS.keys() and "iterations_0" not in found
    assert left_out(thinker).keys() == {"iterations"}
