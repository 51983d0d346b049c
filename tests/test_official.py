"""What the official code of PCCoT, CODI, LOTUS, Coconut and iCoT computes, on one tiny model.

The numbers were printed by that code, in fp32; they are not in this repository, as the weights and
rows that they belong to are not. `:` of the answer prompt is followed there by a token that is a
blank. Where definitions differ, the README beside the numbers says so.
"""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kava.backbones import loading
from kava.reasoning import batching
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import resolve
from kava.recipe.schema import Recipe
from kava.types import Example

OFFICIAL = Path(__file__).parents[2] / "shared" / "official"
pytestmark = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="no ../shared/official: numbers of the official code"
)
SHAPE = {
    "vocab_size": 600, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
#: The numbers have six decimals, and each of the two computations rounds in fp32.
NEAR = {"rel": 1e-6, "abs": 2e-6}
ROWS = range(4)


@pytest.fixture(scope="module")
def official():
    return json.loads((OFFICIAL / "official.json").read_text())


@pytest.fixture(scope="module")
def rows():
    return json.loads((OFFICIAL / "rows.json").read_text())


@pytest.fixture(scope="module")
def batch(rows):
    """Collates rows of a kind (`dropped` or `full`), by default all."""

    def collate(kind, some=ROWS):
        names = ("question", "steps", "step_of", "answer")
        start = len(rows["prompt"]) + 1  # the blank is a token of its own
        parts = [
            batching.Row(str(i), *(rows[kind][i][name] for name in names), start) for i in some
        ]
        return batching.collate(parts, pad_id=0)

    return collate


def reasoner(method, **changes):
    """With the official model's weights, in a recipe that has them all trained."""
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SHAPE))
    missing, unexpected = model.load_state_dict(load_file(OFFICIAL / "lm.safetensors"), False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected  # the head is tied
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(OFFICIAL / "tokenizer.json"),
        bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    )  # fmt: skip
    tree = {"method": method, "backbone": "official", "adapter": "full", "drop_last_step": False}
    tree |= {"data": {"train": "none"}, "train": {"steps": 1, "learning_rate": 1e-4}, **changes}
    recipe = resolve(Recipe.model_validate(tree))
    identity = loading.identity(loading.prepare(model), "official", None)
    made = Reasoner(model, tokenizer, recipe, identity).eval()
    extra = load_file(OFFICIAL / "extra.safetensors")
    with torch.no_grad():
        for name, weight in made.special_tokens.items():
            weight.copy_(extra[name])
        for name, weight in made.projection.layers.state_dict().items():
            weight.copy_(extra[f"prj.{name}"])
    return made


def terms(made, batch, epoch=None):
    """The loss and its terms; `epoch` is a place in the method's curriculum."""
    counts = {}
    if epoch is not None:
        batch = made.apply_stage(batch, epoch)
        counts = {"counts": made.method.counts(batch)}
    with torch.no_grad():
        return {name: value.item() for name, value in made(**counts, **batch).items()}


def codi(**changes):
    return {"weight": 20, "loss": "smooth_l1", **changes}


def test_the_rows_are_encoded_as_there(rows):
    """The chain of thought without its last step; the question has BOS, the answer EOS."""
    made = reasoner("no_cot")
    assert made.encoder.prompt == rows["prompt"]
    for text, expected in zip(rows["texts"], rows["full"], strict=True):
        example = Example("i", text["question"], tuple(text["steps"]), text["answer"])
        row = made.encoder.row(example)
        assert row.question == expected["question"] and row.answer == expected["answer"]
        assert row.answer_start == len(rows["prompt"]) + 1
        assert (row.steps, row.step_of) == (expected["steps"], expected["step_of"])


@pytest.mark.parametrize("layerwise", (False, True))
@pytest.mark.parametrize("projection", ("mlp_layernorm", "none"))
def test_pccot(projection, layerwise, official, batch):
    made = reasoner(
        "pccot", num_latents=24, num_iterations=3, projection=projection,
        codi=codi(layerwise_std=layerwise, position="prompt"),
    )  # fmt: skip
    there = official["pccot"][f"projection={projection} layerwise_std={layerwise}"]
    kinds = {f"row{i}": [i] for i in ROWS}
    kinds["batch, latents masked as the official code should"] = ROWS
    for kind, some in kinds.items():
        expected = dict(there[kind])
        gradients = expected.pop("largest absolute gradient", {})
        assert terms(made, batch("dropped", some)) == pytest.approx(expected, **NEAR), kind
        if gradients:
            assert _gradients(made, batch("dropped", some), gradients) == pytest.approx(
                gradients, rel=1e-4
            )


def _gradients(made, batch, names):
    """The largest absolute gradient of each weight that is named."""
    made.zero_grad()
    made(**batch)["loss"].backward()
    named = {name.removesuffix(".weight"): w for name, w in made.named_parameters()}
    found = {}
    for name in names:
        own = name.replace("projection.", "projection.layers.")
        weight = named[own] if own in named else named[f"backbone.model.{name}"]
        found[name] = weight.grad.abs().max().item()
    return found


@pytest.mark.parametrize(
    "position, there",
    (
        ("prompt", "L_CODI at the colon"),
        ("answer", "L_CODI one token later (their rule where the path names llama or qwen)"),
    ),
)
def test_codi(position, there, official, batch):
    made = reasoner(
        "codi", num_latents=6, projection="mlp_layernorm",
        codi=codi(layerwise_std=True, include_embeddings=True, position=position),
    )  # fmt: skip
    for i in ROWS:
        expected = official["codi"][there][f"row{i}"]
        assert terms(made, batch("dropped", [i])) == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize("stage", (1, 2, 4))
def test_lotus(stage, official, batch):
    """Their code reads the position before each latent, which is `slot`."""
    readout = {"weight": 0.05, "width": 12, "target": "slot"}
    made = reasoner("lotus", num_latents=48, num_iterations=4, latent_readout=readout)
    for i in ROWS:
        expected = dict(official["lotus"][f"stage {stage}"][f"row{i}"])
        expected["student_ce"] = expected.pop("answer_and_written_rest_ce")
        found = terms(made, batch("full", [i]), epoch=stage + 0.5)
        assert found == pytest.approx(expected, **NEAR)


@pytest.mark.parametrize("stage", range(1, 5))
def test_coconut(stage, official, batch):
    """Not stage 0, which was computed with <bot><eot>; it is plain chain of thought, below."""
    options = {"max_stage": 3, "epochs_per_stage": 1.0}
    made = reasoner("coconut", num_latents=6, method_options=options)
    _same_losses(made, batch, official["coconut"][f"stage {stage}"], stage + 0.5)


@pytest.mark.parametrize("removed", (0, 5, 16, 1000))
def test_icot(removed, official, batch):
    made = reasoner("icot", method_options={"tokens_per_epoch": 1.0, "smoothing": None})
    _same_losses(made, batch, official["icot"][f"{removed} tokens removed"], removed)


def _same_losses(made, batch, expected, epoch):
    found = {f"row{i}": terms(made, batch("full", [i]), epoch)["loss"] for i in ROWS}
    found["batch"] = terms(made, batch("full"), epoch)["loss"]
    assert found == pytest.approx(expected, **NEAR)
