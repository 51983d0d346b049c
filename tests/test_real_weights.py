"""What tests on random models do not show: a published model, with its large activations, works.

`make test-real` runs these tests; `make test` does not. See tests/real_weights.py.
"""

import copy
import json

import pytest
import real_weights
import torch
import yaml
from service import LIMITS, serving
from transformers import AutoModelForCausalLM, AutoTokenizer

from kava.backbones import loading
from kava.backbones.masked_cache import MaskedCache
from kava.inference.compressed import compressed
from kava.reasoning import batching
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import resolve
from kava.recipe import registry
from kava.recipe.schema import Recipe
from kava.runs.folder import read_metrics
from kava.training.from_rows import as_examples

pytestmark = pytest.mark.real_weights

#: Texts to continue: to a bare question, this chat model answers nothing.
QUESTIONS = [
    "The capital of France is",
    "Ann has 3 pens and buys 4 more. Now she has",
    "Once upon a time",
    "A box holds 12 eggs. Ben has 2 boxes and breaks 5 eggs while he carries them home. The number "
    "of whole eggs is",
]
ROWS = [
    {
        "question": "Ann has 3 pens and buys 4. She sells each for 2. How much is that?",
        "steps": ["<<3+4=7>>", "<<7*2=14>>"],
        "answer": "14",
    },
    {
        "question": "Ben bakes 9 rolls and eats 3.",
        "steps": ["<<9-3=6>>", "<<6*1=6>>"],
        "answer": "6",
    },
]
TREE = {
    "backbone": "here", "adapter": "lora", "lora": {"r": 8, "dropout": 0.0},
    "drop_last_step": False, "data": {"train": "given"},
    "train": {
        "steps": 3, "batch_size": 2, "learning_rate": 2e-3, "schedule": "constant", "warmup": 0.0,
        "log_every": 1, "precision": "fp32",
    },
}  # fmt: skip
LATENTS = {"num_latents": 6, "num_iterations": 2}
SPECIAL = {
    "coconut": {"num_latents": 4, "method_options": {"max_stage": 2, "epochs_per_stage": 0.3}},
    "lotus": {"num_latents": 6, "latent_readout": {"weight": 0.05, "width": 3}},
    "codi": {"num_latents": 6},
    "pccot": LATENTS,
    "kava": LATENTS,
}


@pytest.fixture(scope="module", autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder():
    return real_weights.converted()


@pytest.fixture(scope="module")
def loaded(folder):
    """Model, tokenizer and identity, in fp32; loaded once, since each method needs them."""
    return loading.load(str(folder), None, torch.float32)


def thinker(loaded, method, dtype=torch.float32):
    """A reasoner with weights of its own."""
    model, tokenizer, identity = loaded
    recipe = resolve(Recipe.model_validate({**TREE, "method": method, **SPECIAL.get(method, {})}))
    model = loading.cast(copy.deepcopy(model), dtype)
    torch.manual_seed(1)
    return Reasoner(model, copy.deepcopy(tokenizer), recipe, identity).eval()


@pytest.fixture(scope="module")
def plain(loaded):
    return thinker(loaded, "cot")


@pytest.fixture(scope="module")
def latent(loaded):
    return thinker(loaded, "kava")


def test_it_loads_in_fp32_and_in_bf16_and_knows_what_it_knew(folder, loaded):
    half = open_reasoner(str(folder), dtype="bfloat16")
    assert half.identity["fingerprint"] == loaded[2]["fingerprint"]
    assert half.lm.dtype == torch.bfloat16 and loaded[0].dtype == torch.float32
    ids = loaded[1]("The capital of France is", return_tensors="pt").input_ids
    for model in (half.lm, loaded[0]):
        assert loaded[1].decode(model(ids).logits[0, -1].argmax()) == " Paris"


@torch.no_grad()
def test_a_cache_continued_in_pieces_gives_the_logits_of_the_whole_text(folder, plain):
    text = " ".join(QUESTIONS)
    ids = plain.tokenizer(text, return_tensors="pt").input_ids
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(ids).logits
    context, found = MaskedCache.empty(1, plain.device), []
    for piece in ids.split([20, 1, 7, ids.shape[1] - 28], dim=1):
        embeds = torch.nn.functional.pad(plain.embed(piece), (0, 0, 3, 2))  # pads change nothing
        mask = torch.nn.functional.pad(torch.ones_like(piece, dtype=torch.bool), (3, 2))
        output, context = plain.extend(context, embeds, mask)
        found.append(plain.logits(output.last_hidden_state[mask]))
    torch.testing.assert_close(torch.cat(found), theirs[0], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def first_logits(reasoner, questions):
    """Logits of the first answer token of each question."""
    result = reasoner.think(questions)
    embeds = reasoner.embed(result.prompt)
    mask = torch.ones_like(result.prompt, dtype=torch.bool)
    output, _ = reasoner.extend(result.cache, embeds, mask)
    return reasoner.logits(output.last_hidden_state[:, -1])


@pytest.mark.parametrize("which", ("plain", "latent"))
def test_batching_changes_no_logit_in_fp32(which, request):
    reasoner = request.getfixturevalue(which)
    together = first_logits(reasoner, QUESTIONS)
    for row, question in enumerate(QUESTIONS):
        alone = first_logits(reasoner, [question])[0]
        torch.testing.assert_close(together[row], alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ("cot", "kava"))
def test_batching_changes_no_answer_in_bf16(method, loaded):
    """Answers of three tokens: later ones of an open text are near ties, which rounding decides."""
    reasoner, tokens = thinker(loaded, method, torch.bfloat16), 3
    together = reasoner.generate(QUESTIONS, max_new_tokens=tokens)
    assert together == [reasoner.generate(q, max_new_tokens=tokens) for q in QUESTIONS]
    assert len(set(together)) > 1


@pytest.mark.parametrize("method", registry.names("methods"))
def test_the_loss_falls_within_three_steps(method, loaded, tmp_path):
    """In the last stage of a curriculum, the first of which may be easier."""
    reasoner = thinker(loaded, method)
    rows = [reasoner.encoder.row(row) for row in as_examples(ROWS, "rows")]
    batch = batching.collate(rows, reasoner.tokenizer.pad_token_id)
    before = reasoner(**batch)["loss"].item()
    reasoner.train_on(ROWS, output=tmp_path / "run", quiet=True)
    after = reasoner(**batch)["loss"].item()
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert len(losses) == 3 and after < before


def test_a_run_is_resumed_merged_and_loaded_by_transformers(folder, tmp_path, kava, monkeypatch):
    """By the commands: 2 of 3 steps in a first process, as far as the run can tell."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(map(json.dumps, ROWS)))
    train = {**TREE["train"], "save_every": 2}
    tree = {**TREE, "method": "pccot", **LATENTS, "backbone": str(folder), "train": train}
    tree["data"] = {"train": str(rows)}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tree))
    words = ("train", tmp_path / "recipe.yaml", "-o", tmp_path / "run")
    from kava.training.callbacks import Record

    begin = Record.on_step_begin

    def cut(self, args, state, control, **more):
        if state.global_step == 2:
            raise KeyboardInterrupt
        return begin(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Record, "on_step_begin", cut)
        status, said = kava(*words)
        assert status != 0, said
    assert (tmp_path / "run/checkpoints/checkpoint-2").is_dir()
    status, said = kava(*words, "--resume")
    assert status == 0, said
    assert [row["step"] for row in read_metrics(tmp_path / "run") if "loss" in row] == [1, 2, 3]

    run = Reasoner.from_pretrained(tmp_path / "run")
    ids = run.tokenizer(QUESTIONS[1], return_tensors="pt").input_ids
    with torch.no_grad():
        trained = run.lm(ids).logits
        run.merge().save_pretrained(tmp_path / "merged")
        lm = AutoModelForCausalLM.from_pretrained(tmp_path / "merged/backbone")
        AutoTokenizer.from_pretrained(tmp_path / "merged")
        torch.testing.assert_close(lm(ids).logits, trained, atol=1e-3, rtol=1e-3)


def test_rkv_compresses_while_decoding(plain):
    def answer(**settings):
        with compressed(plain.lm, **settings) as log:
            return plain.generate(QUESTIONS[3], max_new_tokens=16), log

    text = plain.generate(QUESTIONS[3], max_new_tokens=16)
    assert answer(budget=256)[0] == text
    text, log = answer(budget=16, buffer=8, window=4)
    assert log.compressions and log.peak_columns < log.uncompressed_columns and text.strip()


def test_a_service_answers_a_question(plain):
    httpx = pytest.importorskip("httpx", reason="kava[serve] is not installed")
    with serving(plain) as (address, _):
        message = {"role": "user", "content": QUESTIONS[0]}
        body = {"model": "tiny", "messages": [message], "max_tokens": LIMITS.new_tokens}
        answered = httpx.post(f"{address}/v1/chat/completions", json=body, timeout=60).json()
    text = answered["choices"][0]["message"]["content"]
    assert text == plain.generate(QUESTIONS[0], max_new_tokens=LIMITS.new_tokens) and text.strip()
