"""Result types of reasoning and of answering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kava.backbones.thought import Thought


@dataclass(frozen=True)
class Answer:
    """Answer to one question.

    text: the generated text, including the answer prompt.
    forward_passes: number of sequential forward passes of the backbone from the end of the
        question's prefill to the end of the answer (see docs/papers.md, Evaluation).
    prefill_passes: number of forward passes that belong to the prefill.
    generated_tokens: number of generated tokens, including EOS.
    finished: false if `max_new_tokens` or the backbone's positions cut the answer off.
    """

    text: str
    forward_passes: int
    prefill_passes: int
    generated_tokens: int
    finished: bool


class Generated(NamedTuple):
    """Texts of the answers, together with the reasoning before them.

    text: what `Reasoner.generate` returns without `return_thoughts`.
    thinking: reasoning results of all questions as one batch.
    """

    text: str | list[str] | list[list[str]]
    thinking: ReasoningResult


@dataclass(frozen=True)
class ReasoningResult:
    """Result of the reasoning, from which the answer is generated.

    thought: the KV cache that the answer continues from.
    prompt: [batch, prompt], token ids that are processed first.
    prompt_text: the part of the answer's text that is already in the prompt.
    forward_passes: number of sequential forward passes after the question's prefill (T for
        KaVa; see docs/papers.md, Evaluation).
    prefill_passes: number of forward passes that belong to the prefill.
    latent_states: [batch, latents, hidden], hidden states of the latents in the last layer
        after the last pass; None for methods without latents.
    """

    thought: Thought
    prompt: Tensor
    prompt_text: str
    forward_passes: int
    prefill_passes: int
    latent_states: Tensor | None = None
