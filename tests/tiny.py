"""Backbones small enough to check by hand: random weights, a word per token, no files, no Hub.

Weights are drawn wider than for training, so that attention and positions really matter and a
mask that is ignored shows.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from kava import backbone as backbones
from kava import batching
from kava.model import Reasoner
from kava.recipe import Recipe
from kava.types import Example

FAMILIES = ("llama", "qwen2", "gpt2")
WORDS = [f"w{i}" for i in range(20)]
_VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "The", "answer", "is", ":", "<<", ">>", "=", "+"]
VOCABULARY = [*_VOCABULARY, "-", "*", *map(str, range(21)), *WORDS]

WIDTH, HEADS, KV_HEADS, LAYERS = 32, 4, 2, 2
_SHARED = {"vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {
    **_SHARED, "hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 256, "initializer_range": 0.25,
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `VOCABULARY`."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def bare(family: str, seed: int = 0):
    """A random language model as transformers makes it: grouped heads, biases, or GPT-2."""
    torch.manual_seed(seed)
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**_GROUPED, tie_word_embeddings=True))
    elif family == "qwen2":
        model = Qwen2ForCausalLM(Qwen2Config(**_GROUPED, tie_word_embeddings=False))
    else:
        config = GPT2Config(
            **_SHARED, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=256,
            initializer_range=0.25, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )  # fmt: skip
        model = GPT2LMHeadModel(config)
    with torch.no_grad():  # transformers starts biases at zero, where a lost one would not show
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    return model.eval()


SPECIAL = {
    "coconut": {"num_latents": 4, "method_options": {"max_stage": 2}},
    "lotus": {
        "num_latents": 6, "codi": {"weight": 0.0}, "latent_readout": {"weight": 0.3, "width": 3},
    },
}  # fmt: skip


def recipe(method: str = "kava", **changes: Any) -> Recipe:
    """Every term of the loss switched on, full weights, 5 latents, 2 iterations."""
    tree = {
        "method": method, "backbone": "tiny", "adapter": "full", "drop_last_step": False,
        "num_latents": 5, "num_iterations": 2,
        "codi": {"weight": 0.7}, "kv": {"weight": 1.3},
        "data": {"train": "nothing"}, "train": {"steps": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    return Recipe.model_validate({**tree, **SPECIAL.get(method, {}), **changes})


def lora(**changes: Any) -> dict[str, Any]:
    """Recipe keys of an adapter that fits these backbones."""
    return {"adapter": "lora", "lora": {"r": 4, "dropout": 0.0, **changes}}


def reasoner(family="llama", method: str = "kava", seed: int = 0, **changes: Any) -> Reasoner:
    """In evaluation mode, fp32, on the CPU."""
    model = backbones.prepare(bare(family, seed))
    identity = backbones.identity(model, "tiny", None)
    torch.manual_seed(seed + 1)
    return Reasoner(model, tokenizer(), recipe(method, **changes), identity).eval()


def words(count: int, seed: int) -> str:
    """`count` words of the vocabulary."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def example(question: int, steps: int, seed: int = 0, answer: str = "7") -> Example:
    """A question of `question` words and `steps` tokens of reasoning, as equation steps."""
    draw = random.Random(1000 * seed + 10 * question + steps)
    tokens = [str(draw.randrange(20)) for _ in range(steps)]
    written = ("<< " + " ".join(tokens[1:]),) if steps else ()  # "<<" is a token too
    return Example(f"{question}-{steps}-{seed}", words(question, seed), written, answer)


def stepped(question: int, steps: tuple[int, ...], seed: int = 0, answer: str = "7") -> Example:
    """The same with several steps, of as many tokens as `steps` says."""
    draw = random.Random(1000 * seed + question)
    written = tuple(
        "<< " + " ".join(str(draw.randrange(20)) for _ in range(count - 1)) for count in steps
    )
    return Example(f"{question}-{steps}-{seed}", words(question, seed), written, answer)


def batch(reasoner: Reasoner, examples: list[Example]) -> dict[str, Any]:
    """Encoded and collated."""
    return batching.collate([reasoner.encoder.row(e) for e in examples], pad_id=0)
