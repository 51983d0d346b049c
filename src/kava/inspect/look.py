"""Everything that is measured of one question, as one tree that JSON can hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch

from kava import batching, registry
from kava.errors import KavaError
from kava.evaluate.answers import numeric
from kava.inspect._numbers import Absent
from kava.inspect.attended import Attended, attended
from kava.inspect.decoded import Decoded, decoded
from kava.inspect.kept import KeptTokens, kept_tokens
from kava.inspect.movement import Movement, movement
from kava.inspect.similarity import Similarity, similarity
from kava.inspect.trace import Trace, find_trace
from kava.latents._state import LatentState
from kava.methods._base import Batch, LatentMethod, Written, read_question, read_written
from kava.methods._kv import KvDistillation, taken

if TYPE_CHECKING:
    from kava.model import Reasoner


@dataclass(frozen=True)
class About:
    """The model. `forward_passes` as in an evaluation; `latents` M, `iterations` T or None."""

    run: str
    method: str
    backbone: str
    latents: int
    iterations: int | None
    layers: int
    heads: int
    forward_passes: int


@dataclass(frozen=True)
class Look:
    """One question. A panel that the method does not have is an `Absent`, which says why.

    answer: the student's, after its latents. `gold` is the row's and `right` whether they agree,
    None without a row.
    """

    about: About
    question: str
    answer: str
    gold: str | None
    right: bool | None
    trace: Trace
    decoded: Decoded
    movement: Movement | Absent
    similarity: Similarity | Absent
    kept: KeptTokens | Absent
    attended: Attended

    def tree(self) -> dict[str, Any]:
        """Dicts and lists of plain values."""
        return asdict(self)


@torch.no_grad()
def look(
    reasoner: Reasoner,
    question: str,
    steps: Sequence[str] | None = None,
    answer: str | None = None,
    *,
    row: str | None = None,
    num_iterations: int | None = None,
    max_new_tokens: int = 256,
    run: str = "",
) -> Look:
    """Think about a question, answer it, and compare with the same weights reading its steps.

    Args:
        steps: the written steps; None lets the model write them.
        answer: the right one; None asks the model after it has read the steps.
        row: the id of the row that these are of.
        num_iterations: T, the recipe's if not given.
        run: the name that the page gives the model.

    Raises:
        KavaError: a method without latents, `num_iterations` for a method that does not iterate,
            an empty question or step.
    """
    method = _latent_method(reasoner, num_iterations)
    if not question.strip():
        raise KavaError("inspect: the question is empty")
    iterations = reasoner.recipe.num_iterations if num_iterations is None else num_iterations
    ids = torch.tensor([reasoner.encoder.question(question)], device=reasoner.device)
    asked = {"question": ids, "question_mask": torch.ones_like(ids, dtype=torch.bool)}
    context = read_question(reasoner, asked)
    state = method.think_on(reasoner, context[0], iterations, keep_all=True)
    thinking = method.ready(reasoner, state, iterations)
    new = reasoner.answer(thinking, max_new_tokens)
    trace, encoded = find_trace(reasoner, question, context[0], steps, answer, row, max_new_tokens)
    batch = _on(reasoner.device, batching.collate([encoded], reasoner.tokenizer.pad_token_id))
    teacher = read_written(reasoner, context, batch, queries=True)
    text = reasoner.tokenizer.decode(new[0], skip_special_tokens=True).strip()
    shapes = reasoner.cache_shapes()
    compared, kept = _compression(reasoner, batch, teacher, state)
    return Look(
        about=About(
            run=run,
            method=reasoner.recipe.method,
            backbone=str(reasoner.identity["name"]),
            latents=state.latents.shape[1],
            iterations=iterations if method.iterates else None,
            layers=len(shapes),
            heads=shapes[0][0],
            forward_passes=thinking.forward_passes + int(reasoner.generated_lengths(new)[0]),
        ),
        question=question,
        answer=text,
        gold=answer if row else None,
        right=numeric(reasoner.prompt_text + " " + text, answer) if row and answer else None,
        trace=trace,
        decoded=decoded(reasoner, state),
        movement=movement(state.inputs) if method.iterates else _one_at_a_time(reasoner),
        similarity=compared,
        kept=kept,
        attended=attended(reasoner, state, thinking.prompt, new),
    )


def _latent_method(reasoner: Reasoner, num_iterations: int | None) -> LatentMethod:
    method, name = reasoner.method, reasoner.recipe.method
    if not isinstance(method, LatentMethod):
        known = [
            other
            for other in registry.names("methods")
            if registry.find("methods", other).uses_latents
        ]
        raise KavaError(
            f"inspect: method '{name}' thinks in no latent tokens; give a run of {', '.join(known)}"
        )
    if num_iterations is not None:
        reasoner.check_iterations()
    return method


def _one_at_a_time(reasoner: Reasoner) -> Absent:
    return Absent(
        f"method '{reasoner.recipe.method}' makes its latents one at a time: there are no "
        "iterations to move in"
    )


def _compression(
    reasoner: Reasoner, batch: Batch, teacher: Written, state: LatentState
) -> tuple[Similarity | Absent, KeptTokens | Absent]:
    """The two panels about the compressed cache of the teacher."""
    kv, trained = _distillation(reasoner)
    notes = [] if trained else [_untrained(reasoner)]
    try:
        kv.check(reasoner)
        chosen = kv.choose(batch, teacher)
    except KavaError as error:
        return Absent(str(error)), Absent(str(error))
    written = kv.turned(reasoner, teacher.steps, batch["question_mask"], batch["steps_mask"])
    target = [
        tuple(taken(states, kept) for states in pair)
        for pair, kept in zip(written, chosen, strict=True)
    ]
    before, start = state.thought.attention_mask, batch["question"].shape[1] + 1
    real = before[:, start : start + state.latents.shape[1]]
    maps = kv.seen if "kv_projection" in reasoner.method_modules else kv.turned
    student = [maps(reasoner, one, before[:, :start], real) for one in state.key_values]
    filled = [kept.filled for kept in chosen]
    how = [*notes, *_how_compared(reasoner, kv)]
    return (
        similarity(student, target, filled, how),
        kept_tokens(reasoner, kv, batch, teacher, chosen, notes),
    )


def _distillation(reasoner: Reasoner) -> tuple[KvDistillation, bool]:
    """How the cache is compressed, and whether the method was trained on it."""
    own = getattr(reasoner.method, "kv", None)
    if own is None:
        return KvDistillation(reasoner.recipe), False
    return own, reasoner.recipe.kv.weight > 0


def _untrained(reasoner: Reasoner) -> str:
    return (
        f"This {reasoner.recipe.method} was not trained to match this cache; the compression is "
        "that of the recipe's kv section (its defaults where it has none)."
    )


def _how_compared(reasoner: Reasoner, kv: KvDistillation) -> list[str]:
    notes = []
    if kv.kv.keys == "post_rope":
        notes.append("Keys are compared as the cache holds them (kv.keys: post_rope).")
    elif getattr(reasoner.lm.base_model, "rotary_emb", None) is not None:
        notes.append(
            "Keys are compared before their rotation, as the loss does (kv.keys: pre_rope)."
        )
    if "kv_projection" in reasoner.method_modules:
        notes.append(
            "The student's keys and values go through kv.projection first, as in the loss."
        )
    return notes


def _on(device: torch.device, batch: dict[str, Any]) -> Batch:
    return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
