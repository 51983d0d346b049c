"""Train a small backbone from scratch: tokenizer, random weights, training on chains of thought."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from kava.backbones import loading, pretrained
from kava.backbones.tokenizer import train_tokenizer
from kava.errors import KavaError
from kava.evaluation.answers import HEADLINE
from kava.evaluation.runner import evaluate
from kava.reasoning import checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.recipe.schema import Architecture, BackboneRecipe, Recipe
from kava.runs.folder import clear, create_or_resume, exclusive_lock
from kava.runs.layout import RESULT
from kava.system import distributed, sharded
from kava.system.environment import default_device, provenance
from kava.system.files import explain_disk_errors, write_json, write_whole
from kava.system.progress import Progress, no_bars
from kava.training.arguments import check_reports, rows_at_once
from kava.training.rows import data_record, read_rows
from kava.training.trainer import train
from kava.types import ANSWER_PROMPT, Example

SAMPLE = "sample.jsonl"


def pretrain(
    resolved: BackboneRecipe, folder: Path, console: Console, resume: bool = False
) -> dict[str, Any]:
    """Train a backbone that writes out its chain of thought, and save it in transformers' format.

    The folder can be loaded with `AutoModelForCausalLM` and `AutoTokenizer`. It also contains the
    recipe, the metrics, the result and a sample of held-out answers.
    """
    distributed.check_sharding()
    rows_at_once(resolved.train, distributed.world_size())
    rows, validation = distributed.main_rank_first(lambda: read_rows(resolved.data, console))
    reasoner, tokenizer = new_reasoner(resolved, rows)
    # The initial random weights are not compared on resuming: a checkpoint contains all weights.
    inputs = {"data": data_record(resolved.data, rows, validation)}
    distributed.on_main_rank(lambda: check_reports(resolved.train.report_to))
    with exclusive_lock(folder), create_or_resume(folder, resolved, resume, inputs):
        title = f"backbone {resolved.name}"
        measured = train(reasoner, rows, validation, folder, resume, Progress(title, console))
        result = {
            "name": resolved.name,
            "seed": resolved.seed,
            "weights": sum(p.numel() for p in reasoner.lm.parameters()),
            **measured,
            **provenance(),
        }
        with sharded.full_weights(reasoner):
            sample = _sample(reasoner, validation[:20])
        weights = sharded.gather_weights(reasoner)

        def write() -> None:
            checkpoint.check_finite(reasoner, weights, folder)
            with no_bars(), explain_disk_errors(folder):
                checkpoint.save_lm(reasoner, folder, weights)
                tokenizer.save_pretrained(folder)
            write_whole(folder / SAMPLE, sample)
            write_json(folder / RESULT, result)
            clear(folder)

        distributed.on_main_rank(write)
    return result


def new_reasoner(resolved: BackboneRecipe, rows: list[Example]) -> tuple[Reasoner, Any]:
    """Create a randomly initialised backbone with the `cot` method, and its tokenizer.

    The special tokens are added to the reasoner's copy of the tokenizer only, and are not part of
    the saved backbone.
    """
    torch.manual_seed(resolved.seed)
    tokenizer = train_tokenizer(
        (text for row in rows for text in _texts(row)),
        resolved.vocabulary.size,
        resolved.vocabulary.digits,
    )
    model = new_model(resolved.architecture, tokenizer).to(default_device())
    recipe = Recipe(
        method="cot",
        backbone=resolved.name,
        seed=resolved.seed,
        adapter="full",
        drop_last_step=False,
        data=resolved.data,
        train=resolved.train,
        eval=resolved.eval,
    )
    identity = loading.identity(loading.prepare(model), resolved.name, None)
    return Reasoner(model, copy.deepcopy(tokenizer), recipe, identity), tokenizer


def new_model(shape: Architecture, tokenizer: Any) -> PreTrainedModel:
    """Create a causal language model of a family, with weights drawn from torch's generator.

    Raises:
        KavaError: if transformers does not know the family, or the family has no such shape.
    """
    return pretrained.new_model(_config(shape, tokenizer), dtype=torch.float32)


def _texts(row: Example) -> list[str]:
    return [row.question, *row.steps, f"{ANSWER_PROMPT} {row.answer}"]


def _config(shape: Architecture, tokenizer: Any) -> PreTrainedConfig:
    settings = {
        "vocab_size": len(tokenizer),
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "max_position_embeddings": shape.max_positions,
        "rope_theta": shape.rope_theta,
        "initializer_range": shape.initializer_range,
        "tie_word_embeddings": shape.tie_embeddings,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        known = AutoConfig.for_model(shape.family)
    except ValueError:
        raise KavaError(
            f"architecture.family: '{shape.family}' is not a model type that transformers knows",
            code="backbones.unknown-family",
            key=shape.family,
        ) from None
    rotary = {"rope_theta"} if hasattr(known, "rope_parameters") else set()
    missing = [key for key in settings if not hasattr(known, key) and key not in rotary]
    if missing:
        raise KavaError(
            f"architecture.family: {shape.family} has no {', '.join(missing)}; choose a family "
            "that supports this",
            code="training.family-lacks",
            key=missing[0],
        )
    # The default differs between families; in a family without this setting, it has this value.
    settings["head_dim"] = shape.hidden_size // shape.num_heads
    return AutoConfig.for_model(shape.family, **settings)


def _sample(reasoner: Reasoner, examples: list[Example]) -> str:
    settings = reasoner.recipe.eval
    length = settings.max_new_tokens
    sample = evaluate(reasoner, examples, settings.batch_size, length, rules=(HEADLINE,))
    kept = ("id", "question", "answer", "prediction")
    lines = (json.dumps({key: p[key] for key in kept}) for p in sample.predictions)
    return "".join(line + "\n" for line in lines)
