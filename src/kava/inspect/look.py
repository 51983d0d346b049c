"""Measure everything about one answer, as a tree of values that JSON can hold."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from kava.errors import KavaError
from kava.evaluation.answers import numeric_match, string
from kava.inspect._numbers import Unavailable
from kava.inspect.attended import AnswerAttention, measure_attention
from kava.inspect.compression import compression
from kava.inspect.decoded import DecodedLatents, decode_passes
from kava.inspect.kept import KeptTokens
from kava.inspect.movement import Movement, movement
from kava.inspect.similarity import Similarity
from kava.inspect.trace import Trace, find_trace
from kava.reasoning import batching, context_window
from kava.reasoning.methods import LatentMethod, eot_suffix, prefill_question, teacher_forward
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry


@dataclass(frozen=True)
class ModelSummary:
    """The model that was inspected.

    latents: M.
    iterations: T; None for a method that does not iterate.
    heads: number of key/value heads.
    forward_passes: counted as in an evaluation.
    """

    run: str
    method: str
    backbone: str
    latents: int
    iterations: int | None
    layers: int
    heads: int
    forward_passes: int


@dataclass(frozen=True)
class Inspection:
    """Everything that was measured about one question.

    A panel that the method does not have is `Unavailable`, which gives the reason.

    answer: the student's answer, after its latents.
    gold: the correct answer, if known.
    right: whether the two agree, as numbers or as strings; None if `gold` is not known.
    """

    about: ModelSummary
    question: str
    answer: str
    gold: str | None
    right: bool | None
    trace: Trace
    decoded: DecodedLatents
    movement: Movement | Unavailable
    similarity: Similarity | Unavailable
    kept: KeptTokens | Unavailable
    attended: AnswerAttention

    def tree(self) -> dict[str, Any]:
        """Return the measurements as dicts and lists of plain values."""
        return asdict(self)


@torch.no_grad()
def inspect_question(
    reasoner: Reasoner,
    question: str,
    steps: Sequence[str] | None = None,
    answer: str | None = None,
    *,
    row: str | None = None,
    num_iterations: int | None = None,
    max_new_tokens: int = 256,
    run: str = "",
) -> Inspection:
    """Answer a question, and compare with the same weights reading the chain of thought.

    Args:
        steps: the chain of thought; None lets the model write it.
        answer: the correct answer; None asks the model after it has read the chain of thought.
        row: the id of the example that these are from.
        num_iterations: T; the recipe's value if not given.
        run: the name of the model on the page.

    Raises:
        KavaError: a method without latents, `num_iterations` for a method that does not iterate, an
            empty question or step, or a question or steps too long for the backbone.
    """
    method = _latent_method(reasoner, num_iterations)
    if not question.strip():
        raise KavaError(
            "inspect: the question is empty", code="inspect.empty-question", key="question"
        )
    iterations = reasoner.recipe.num_iterations if num_iterations is None else num_iterations
    encoded = reasoner.encoder.question(question)
    context_window.check(reasoner, [encoded])
    ids = torch.tensor([encoded], device=reasoner.device)
    question_batch = {"question": ids, "question_mask": torch.ones_like(ids, dtype=torch.bool)}
    context = prefill_question(reasoner, question_batch)
    state = method.latents(
        reasoner, context[0], eot_suffix(reasoner, context[0]), iterations, keep_all=True
    )
    if state.iterations is not None:  # the question found its own
        iterations = int(state.iterations[0])
    reasoning = method.finish_thinking(reasoner, state, iterations)
    new = reasoner.continue_from(reasoning, max_new_tokens)
    trace, encoded = find_trace(reasoner, question, context[0], steps, answer, row, max_new_tokens)
    batch = batching.collate([encoded], reasoner.tokenizer.pad_token_id)
    batch = batching.to_device(batch, reasoner.device)
    teacher = teacher_forward(reasoner, context, batch, queries="later_steps")
    written = new[:, : int((new != reasoner.tokenizer.eos_token_id).sum())]
    prompt = reasoning.text(reasoner.tokenizer, 0, written[0].tolist())
    text = prompt.removeprefix(reasoning.prompt_text or "").strip()
    shapes = reasoner.cache_shapes()
    compared, kept = compression(reasoner, batch, teacher, state)
    return Inspection(
        about=ModelSummary(
            run=run,
            method=reasoner.recipe.method,
            backbone=str(reasoner.identity["name"]),
            latents=state.latents.shape[1],
            iterations=iterations if method.iterates else None,
            layers=len(shapes),
            heads=shapes[0][0],
            forward_passes=reasoning.forward_passes + int(reasoner.generated_lengths(new)[0]),
        ),
        question=question,
        answer=text,
        gold=answer,
        right=None if answer is None else numeric_match(prompt, answer) or string(prompt, answer),
        trace=trace,
        decoded=decode_passes(reasoner, state),
        movement=movement(state.inputs) if method.iterates else _not_parallel(reasoner),
        similarity=compared,
        kept=kept,
        attended=measure_attention(reasoner, state, reasoning.prompt, written),
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
            f"inspect: method '{name}' does not use latent tokens; use a run of {', '.join(known)}",
            code="inspect.no-latents",
            key=name,
        )
    if num_iterations is not None:
        reasoner.check_iterations(num_iterations)
    return method


def _not_parallel(reasoner: Reasoner) -> Unavailable:
    return Unavailable(
        f"method '{reasoner.recipe.method}' makes its latents one at a time: there are no "
        "iterations to move in"
    )
