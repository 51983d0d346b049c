"""Tiny backbones with random weights of any model family, for smoke tests and for counting work."""

from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from kava.backbones import loading, pretrained
from kava.backbones.tokenizer import train_tokenizer
from kava.data import load_examples
from kava.errors import KavaError, on_one_line
from kava.system.progress import no_bars
from kava.types import ANSWER_PROMPT

ROWS = 32


def tiny_backbone(model_type: str, folder: Path, seed: int = 0) -> int:
    """Save a tiny random backbone of a model family with a tokenizer.

    Args:
        model_type: the family, as `model_type` in transformers.
        folder: where to save the backbone.
        seed: seed of the random weights.

    Returns:
        The number of weights.

    Raises:
        KavaError: transformers has no causal language model of that type, it cannot be made so
            small, or it does not support external masks and positions.
    """
    rows = load_examples("synthetic", "train", limit=ROWS)
    texts = [t for row in rows for t in (row.question, *row.steps, ANSWER_PROMPT)]
    tokenizer = train_tokenizer(texts, 320, "single")
    shape = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    torch.manual_seed(seed)
    try:
        config = AutoConfig.for_model(model_type, **shape)
        model = pretrained.new_model(config, dtype=torch.float32)
    except (ValueError, TypeError, AttributeError, StrictDataclassError) as error:
        if model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            raise KavaError(
                f"family: '{model_type}' is not a causal language model that transformers knows; "
                "use the 'model_type' in the backbone's config.json",
                code="backbones.unknown-family",
                key=model_type,
            ) from None
        raise KavaError(
            f"family: cannot create a tiny '{model_type}' for --smoke: {on_one_line(error)}",
            code="backbones.no-tiny",
            key=model_type,
        ) from None
    with no_bars():
        loading.prepare(model).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return sum(p.numel() for p in model.parameters())
