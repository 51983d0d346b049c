"""SIM-CoT's decoder: a copy of the backbone that learns, is resumed, and is gone at the end."""

import pytest
import torch
from safetensors.torch import load_file
from test_curricula import logged, trained
from tiny import batch, lora, reasoner, stepped

from kava.reasoning.reasoner import Reasoner
from kava.recipe import schema

EXAMPLES = [stepped(4, (3, 2, 4)), stepped(8, (2, 5), 1, "1 2"), stepped(5, (), 3)]


def test_surplus_steps_are_those_of_the_last_latent():
    thinker = reasoner("llama", "simcot", num_latents=2)
    data, eos = thinker.apply_stage(batch(thinker, EXAMPLES)), thinker.tokenizer.eos_token_id
    rows = [thinker.encoder.row(one) for one in EXAMPLES]
    pairs = list(zip(data["decoder_rows"].tolist(), data["decoder_latents"].tolist(), strict=True))
    assert pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    found = [ids[m].tolist() for ids, m in zip(data["decoder_ids"], data["decoder_mask"],
                                               strict=True)]  # fmt: skip
    first, second = rows[0].steps, rows[1].steps
    assert found == [[*first[:3], eos], [*first[3:], eos], [*second[:2], eos], [*second[2:], eos]]


def test_where_there_is_no_step_the_decoder_has_a_gradient_of_zero():
    thinker = reasoner("llama", "simcot")
    terms = thinker(**batch(thinker, EXAMPLES[2:]))
    assert terms["step_ce"] == 0
    terms["loss"].backward()
    assert all(
        weight.grad is not None and not weight.grad.any()
        for weight in thinker.training_modules.parameters()
    )


def test_the_decoder_is_the_backbone_without_adapter_embeddings_and_head():
    thinker = reasoner("llama", "simcot", **lora())
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if "lora_B" in name:
                weight.normal_()
    thinker.prepare_training()
    decoder = thinker.training_modules["decoder"]
    names = [name for name, _ in decoder.named_parameters()]
    assert not any("lora" in name or "embed" in name or "head" in name for name in names)
    assert all(weight.requires_grad for weight in decoder.parameters())
    backbone = {n.replace(".base_layer", ""): w for n, w in thinker.lm.named_parameters()}
    for name, weight in decoder.named_parameters():
        assert torch.equal(weight, backbone[name]) and weight is not backbone[name]
    before = decoder
    thinker.prepare_training()
    assert thinker.training_modules["decoder"] is before


def test_it_answers_as_codi_does():
    simcot, codi = (reasoner("llama", method) for method in ("simcot", "codi"))
    questions = [one.question for one in EXAMPLES]
    assert simcot.generate(questions, 4) == codi.generate(questions, 4)


@pytest.mark.parametrize("method", ("mux", "simcot"))
def test_resumed_equals_uninterrupted_and_only_the_reasoner_is_kept(
    method, backbone, tmp_path, monkeypatch
):
    tree = {
        "method": method, "backbone": str(backbone), "lora": {"r": 4}, "num_latents": 2,
        "data": {"train": "synthetic", "train_rows": 16},
        "train": {"steps": 6, "batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3,
                  "log_every": 1, "save_every": 2},
    }  # fmt: skip
    wanted = schema.validate(tree, "test")
    trained(wanted, tmp_path / "whole", monkeypatch)
    with pytest.raises(InterruptedError):
        trained(wanted, tmp_path / "cut", monkeypatch, stop_after=5)
    during = tmp_path / "cut/checkpoints/checkpoint-4"
    saved = load_file(during / "kava.safetensors")
    assert any(name.startswith("training_modules.decoder") for name in saved) == (
        method == "simcot"
    )
    Reasoner.from_pretrained(during).generate("w1 w2", 2)  # before the end, too
    trained(wanted, tmp_path / "cut", monkeypatch, resume=True)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    for file in ("kava.safetensors", "adapter/adapter_model.safetensors"):
        cut, whole = (tmp_path / run / "checkpoint" / file for run in ("cut", "whole"))
        assert cut.read_bytes() == whole.read_bytes()
    final = load_file(tmp_path / "whole/checkpoint/kava.safetensors")
    assert not any(name.startswith("training_modules") for name in final)
    again = Reasoner.from_pretrained(tmp_path / "whole/checkpoint")
    assert not again.training_modules
