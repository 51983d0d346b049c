"""Backbones small enough to check by hand: random weights, a word per token, no files, no Hub.

Weights are drawn wider than for training, so that attention and positions really matter and a
mask that is ignored shows.
"""

from __future__ import annotations

import copy
import functools
import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from kava.backbones import loading
from kava.reasoning import batching
from kava.reasoning.reasoner import Reasoner
from kava.reasoning.resolve import resolve
from kava.recipe import registry
from kava.recipe.schema import Recipe
from kava.types import Example

WORDS = [f"w{i}" for i in range(20)]
_VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "The", "answer", "is", ":", "<<", ">>", "=", "+"]
VOCABULARY = [*_VOCABULARY, "-", "*", *map(str, range(21)), *WORDS]

WIDTH, HEADS, KV_HEADS, LAYERS = 32, 4, 2, 2
_SHARED = {
    "vocab_size": len(VOCABULARY), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    "hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
    "max_position_embeddings": 256, "initializer_range": 0.25,
}  # fmt: skip
_GROUPED = {
    **_SHARED, "intermediate_size": 64, "num_key_value_heads": KV_HEADS, "head_dim": WIDTH // HEADS,
}  # fmt: skip
WINDOW = 7  # shorter than what the tests ask, so that a window that is ignored shows
#: What each family is here for.
_CONFIGS = {
    # grouped heads, tied embeddings
    "llama": {**_GROUPED, "tie_word_embeddings": True},
    # biases on q, k and v; a window on the second layer alone
    "qwen2": {
        **_GROUPED, "tie_word_embeddings": False, "use_sliding_window": True,
        "sliding_window": WINDOW, "max_window_layers": 1,
    },
    # queries and keys normalised; heads wider than hidden size / heads
    "qwen3": {**_GROUPED, "tie_word_embeddings": True, "head_dim": 16},
    # learned positions, layers stored transposed, no grouped heads
    "gpt2": {**_SHARED, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    # a window on every layer
    "mistral": {**_GROUPED, "tie_word_embeddings": False, "sliding_window": WINDOW},
    # q, k and v in one matrix, half of each head rotated
    "phi3": {
        **_GROUPED, "tie_word_embeddings": False,
        "rope_parameters": {"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    },
    # soft caps, embeddings scaled by their table, its own logit scale, window and full layers
    "gemma2": {
        **_GROUPED, "sliding_window": WINDOW, "query_pre_attn_scalar": 20,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
    },
    # another rotation for each kind of layer, queries and keys normalised
    "gemma3_text": {
        **_GROUPED, "sliding_window": WINDOW, "query_pre_attn_scalar": 5,
        "layer_types": ["sliding_attention", "full_attention"],
    },
}  # fmt: skip
FAMILIES = tuple(_CONFIGS)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of `VOCABULARY`."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(VOCABULARY)}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
    )  # fmt: skip


def bare(family: str, seed: int = 0, **changes: Any):
    """A random language model as transformers makes it; `changes` to its configuration."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(family, **{**_CONFIGS[family], **changes})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # transformers starts biases at zero, where a lost one would not show
        for name, weight in model.named_parameters():
            if name.endswith("bias"):
                weight.normal_(0, 0.3)
    return model.eval()


SPECIAL = {
    "coconut": {"num_latents": 4, "method_options": {"max_stage": 2}},
    "lotus": {"num_latents": 6, "latent_readout": {"weight": 0.3, "width": 3}},
}
WEIGHTS = {"codi": {"weight": 0.7}, "kv": {"weight": 1.3}}


def weights(method: str) -> dict[str, Any]:
    """Return the weights of the distillation losses that a method has."""
    losses = registry.find("methods", method).losses
    return {name: section for name, section in WEIGHTS.items() if name in losses}


def recipe(method: str = "kava", **changes: Any) -> Recipe:
    """Every term of the loss switched on, full weights, 5 latents, 2 iterations."""
    tree = {
        "method": method, "backbone": "tiny", "adapter": "full", "drop_last_step": False,
        "num_latents": 5, "num_iterations": 2,
        **weights(method),
        "data": {"train": "nothing"}, "train": {"steps": 1, "learning_rate": 1e-3},
    }  # fmt: skip
    return resolve(Recipe.model_validate({**tree, **SPECIAL.get(method, {}), **changes}))


def lora(**changes: Any) -> dict[str, Any]:
    """Recipe keys of an adapter that fits these backbones."""
    return {"adapter": "lora", "lora": {"r": 4, "dropout": 0.0, **changes}}


def reasoner(family="llama", method: str = "kava", seed: int = 0, **changes: Any) -> Reasoner:
    """In evaluation mode, fp32, on the CPU."""
    return _reasoner(*copy.deepcopy(_prepared(family, seed)), method, seed, **changes)


def wrap(model, method: str = "kava", seed: int = 0, words=None, **changes: Any) -> Reasoner:
    """A reasoner of a given model; `words` is its tokenizer."""
    return _reasoner(*_checked(model, words or tokenizer()), method, seed, **changes)


@functools.cache
def _prepared(family: str, seed: int):
    """A model, its tokenizer and its identity; made and checked once, for copies of it."""
    return _checked(bare(family, seed), tokenizer())


def _checked(model, words):
    return model, words, loading.identity(loading.prepare(model), "tiny", None)


def _reasoner(model, words, identity, method: str, seed: int, **changes: Any) -> Reasoner:
    torch.manual_seed(seed + 1)
    return Reasoner(model, words, recipe(method, **changes), identity).eval()


def backbone_parameters(model) -> list[torch.nn.Parameter]:
    """All weights that do not belong to an adapter."""
    return [weight for name, weight in model.named_parameters() if ".lora_" not in name]


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


class Table(list):
    """Rows as `datasets.load_dataset` gives them, none of them in a file."""

    cache_files = ()


def batch(reasoner: Reasoner, examples: list[Example]) -> dict[str, Any]:
    """Encoded and collated."""
    return batching.collate([reasoner.encoder.row(e) for e in examples], pad_id=0)
