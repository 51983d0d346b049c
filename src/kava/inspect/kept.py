"""Which chain-of-thought tokens of the teacher's cache each head keeps, and why."""

from dataclasses import dataclass
from typing import Any

import torch

from kava.inspect._numbers import Unavailable, numbers
from kava.reasoning.methods import Batch, TeacherOutput
from kava.reasoning.methods._kv import KvDistillation, Selection
from kava.reasoning.reasoner import Reasoner


@dataclass(frozen=True)
class KeptTokens:
    """The tokens of the chain of thought that the compressed cache keeps.

    C is the number of tokens, L of layers, H of key/value heads.

    tokens: C pairs of a token's text and the number of its step.
    columns: [L][H], the kept tokens in the order of the slots; None in a slot without a token.
    numbers: `score` and its parts (`importance`, `redundancy`), each [L][H][C]; None for a token
        that belongs to no block.
    budget: number of slots of each block.
    blocks: number of blocks: one, or a block of slots for each step (LOTUS).
    """

    tokens: list[tuple[str, int]]
    columns: list[Any]
    numbers: dict[str, Any]
    eviction: str
    lam: float
    budget: int
    blocks: int
    notes: list[str]


def kept_tokens(
    reasoner: Reasoner,
    kv: KvDistillation,
    batch: Batch,
    teacher: TeacherOutput,
    selections: list[Selection],
    notes: list[str],
) -> KeptTokens | Unavailable:
    """Return the panel for the tokens that `kv` selected from one chain of thought."""
    ids = batch["steps"][0].tolist()
    if not ids:
        return Unavailable("the teacher read no step, so there is nothing to keep or to evict")
    steps = batch["step_of"][0].tolist()
    blocks = kv.blocks(batch)
    parts: dict[str, list] = {}
    for layer, one in enumerate(selections):
        for name, values in _measure_scores(kv, batch, teacher, layer, one).items():
            parts.setdefault(name, []).append(values)
    return KeptTokens(
        tokens=list(zip(pieces(reasoner.tokenizer, ids), steps, strict=True)),
        columns=[_columns(one) for one in selections],
        numbers={name: numbers(torch.stack(values)) for name, values in parts.items()},
        eviction=kv.kv.eviction.name,
        lam=kv.kv.eviction.lam,
        budget=blocks[0][1],
        blocks=len(blocks),
        notes=notes,
    )


def pieces(tokenizer: Any, ids: list[int]) -> list[str]:
    """Return the text that each token adds to the text before it."""
    whole = [tokenizer.decode(ids[:n], clean_up_tokenization_spaces=False) for n in range(len(ids))]
    whole.append(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return [
        # A token may be only a part of a character, which the next token completes.
        after[len(before) :] if after.startswith(before) else tokenizer.decode([token])
        for before, after, token in zip(whole, whole[1:], ids, strict=False)
    ]


def _measure_scores(
    kv: KvDistillation, batch: Batch, teacher: TeacherOutput, layer: int, kept: Selection
) -> dict[str, torch.Tensor]:
    """Return one layer's score and its parts, each [H, C]; each token's are from its own block."""
    found: dict[str, torch.Tensor] = {}
    for (mask, _), score in zip(kv.blocks(batch), kept.scores, strict=True):
        parts = kv.eviction.parts(kv.eviction_inputs(batch, teacher, layer, mask))
        for name, values in {"score": score, **parts}.items():
            empty = torch.full_like(values, torch.nan, dtype=torch.float32)
            found[name] = torch.where(mask[:, None], values.float(), found.get(name, empty))
    return {name: values[0] for name, values in found.items()}


def _columns(kept: Selection) -> list[list[int | None]]:
    columns, slot_mask = kept.columns[0].tolist(), kept.slot_mask[0].tolist()
    return [
        [column if real else None for column, real in zip(*head, strict=True)]
        for head in zip(columns, slot_mask, strict=True)
    ]
