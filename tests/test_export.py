"""An exported folder: transformers reads the backbone, kava reads the same checkpoint."""

import json

import pytest
import tiny
import torch
from refusals import refused
from safetensors import safe_open
from test_checkpoint import QUESTIONS, build, outputs, without_training_modules
from transformers import AutoModelForCausalLM

from kava.backbones import loading, to_gguf
from kava.reasoning.export import export, section
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry

KAVA = "checkpoints/quickstart/kava"


@pytest.mark.parametrize("adapter", ["full", "lora"])
@pytest.mark.parametrize("method", registry.names("methods"))
def test_an_exported_checkpoint_answers_as_before(tmp_path, method, adapter):
    reasoner = build(tmp_path, "llama", adapter, method).merge()
    terms, ids = without_training_modules(outputs(reasoner))
    folder = export(reasoner, tmp_path / "exported")
    read = Reasoner.from_pretrained(folder)
    again, ids_again = outputs(read)
    assert torch.equal(ids, ids_again)
    for name, value in terms.items():
        torch.testing.assert_close(again[name], value, rtol=1e-6, atol=1e-6)
    assert read.merged is reasoner.merged


def test_questions_keep_their_tokens(tmp_path, family):
    reasoner = tiny.reasoner(family)  # its tokenizer is not one of its family
    read = Reasoner.from_pretrained(export(reasoner, tmp_path / "exported"))
    assert read.encoder.questions(QUESTIONS) == reasoner.encoder.questions(QUESTIONS)


def test_transformers_reads_the_merged_backbone(tmp_path, family):
    reasoner = build(tmp_path, family, "lora")
    folder = export(reasoner, tmp_path / "exported")
    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert plain.config.model_type == reasoner.lm.config.model_type
    ids = torch.tensor([[5, 6, 7, 8]])
    expected = reasoner.lm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    torch.testing.assert_close(plain(ids).logits, expected, rtol=1e-4, atol=1e-4)


def test_the_embeddings_of_a_question_lead_any_engine_to_the_same_answer(tmp_path):
    folder = export(build(tmp_path, "llama", "full"), tmp_path / "exported")
    reasoner, plain = Reasoner.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    (answer,) = reasoner.continue_from(reasoner.think(QUESTIONS[:1]), 6).tolist()
    embeds = reasoner.prompt_embeds(QUESTIONS[0])
    found = []
    for _ in answer:  # greedily, without a cache
        logits = plain(inputs_embeds=embeds).logits[0, -1]
        if reasoner.unreadable_ids is not None:
            logits = logits.masked_fill(reasoner.unreadable_ids, -torch.inf)
        found.append(int(logits.argmax()))
        embeds = torch.cat((embeds, plain.get_input_embeddings()(logits.argmax()[None, None])), 1)
    assert found == answer


def test_config_json_says_what_an_engine_needs(tmp_path):
    reasoner = build(tmp_path, "llama", "lora")
    folder = export(reasoner, tmp_path / "exported")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["KavaLlamaForCausalLM"]
    found = config["kava"]
    assert found["method"] == "kava" and found["format"] == 1
    assert found["num_latents"] == reasoner.recipe.num_latents
    assert found["num_iterations"] == reasoner.recipe.num_iterations
    assert found["prompt_ids"] == reasoner.encoder.prompt
    with safe_open(folder / "model.safetensors", framework="pt") as opened:
        own = {name for name in opened.keys() if name.startswith("kava.")}  # noqa: SIM118
    assert {f"kava.special_tokens.{name}" for name in ("bot", "latent", "eot")} <= own


def test_a_method_that_writes_the_start_of_its_answer_has_no_prompt():
    assert section(tiny.reasoner(method="lotus"))["prompt_ids"] == []


def test_the_command_exports_a_run_and_ask_reads_it(tmp_path, kava):
    status, said = kava("export", KAVA, "-o", tmp_path / "exported")
    assert status == 0 and said == f"written: {tmp_path / 'exported'}\n"  # and no bar
    question = "Monday brought Ann 4 pens. Tuesday brought 3 more than Monday. "
    question += "How many pens did Tuesday bring Ann?"
    status, said = kava("ask", tmp_path / "exported", question)
    assert status == 0 and said.splitlines()[0].endswith("7")
    assert "kava.special_tokens" not in said


def test_an_existing_folder_is_kept(tmp_path, kava):
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "mine").write_text("mine", encoding="utf-8")
    with refused("reasoning.export-exists"):
        export(Reasoner.from_pretrained(KAVA), tmp_path / "exported")
    assert (tmp_path / "exported" / "mine").read_text(encoding="utf-8") == "mine"
    assert not (tmp_path / "exported.partial").exists()


def test_a_checkpoint_that_lost_its_own_weights_is_refused(tmp_path):
    folder = export(build(tmp_path, "llama", "full"), tmp_path / "exported")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)  # the backbone alone
    with refused("reasoning.weight-missing"):
        Reasoner.from_pretrained(folder)


ROTATED = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 32,
}  # fmt: skip


@pytest.mark.parametrize(
    ("of", "changes"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": False}),
        ("qwen2", {"use_sliding_window": False}),
        ("qwen3", {"head_dim": 128}),  # transformers reads no other size
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gguf_file_has_the_weights_of_the_backbone(tmp_path, of, changes, dtype):
    pytest.importorskip("gguf")
    reasoner = tiny.wrap(tiny.bare(of, **changes).to(dtype))
    folder = export(reasoner, tmp_path / "exported", gguf=True)
    read = loading.load_model(folder / "backbone.gguf", torch.float32)
    assert read.config.model_type == of
    weights = read.state_dict()
    for name, weight in reasoner.lm.state_dict().items():
        torch.testing.assert_close(weights[name], weight.float(), rtol=0, atol=0)
    assert Reasoner.from_pretrained(folder).lm.dtype == torch.float32  # the folder is as without


def test_the_factors_of_rotary_frequencies_are_those_of_llama_3(tmp_path):
    gguf = pytest.importorskip("gguf")
    model = tiny.bare("llama", rope_parameters=ROTATED)
    to_gguf.write(model, tmp_path / "backbone.gguf")
    tensors = {one.name: one.data for one in gguf.GGUFReader(tmp_path / "backbone.gguf").tensors}
    plain = tiny.bare("llama").model.rotary_emb.inv_freq
    expected = plain / model.model.rotary_emb.inv_freq
    torch.testing.assert_close(torch.tensor(tensors["rope_freqs.weight"]), expected)
    assert len(expected.unique()) > 1


@pytest.mark.parametrize(
    ("of", "code"), [("gemma2", "backbones.gguf-family"), ("qwen2", "backbones.gguf-window")]
)
def test_a_backbone_that_gguf_files_cannot_hold_is_refused(tmp_path, of, code):
    pytest.importorskip("gguf")
    with refused(code):
        export(tiny.reasoner(of), tmp_path / "exported", gguf=True)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_gguf_file_if_asked(tmp_path, kava):
    pytest.importorskip("gguf")
    status, _ = kava("export", KAVA, "-o", tmp_path / "exported", "--format", "gguf")
    assert status == 0 and (tmp_path / "exported" / "backbone.gguf").stat().st_size > 1e5
    assert kava("export", KAVA, "-o", tmp_path / "other", "--format", "onnx")[0] != 0
