"""What comes out at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from kava.backbones.thought import Thought


@dataclass(frozen=True)
class Answer:
    """One answered question.

    text: everything the model wrote, the answer prompt included.
    forward_passes: sequential backbone calls from the end of the question's prefill to the end of
        the answer (spec, Evaluation). generated_tokens includes EOS.
    finished: false where `max_new_tokens` or the backbone's positions cut it off.
    """

    text: str
    forward_passes: int
    prefill_passes: int
    generated_tokens: int
    finished: bool


class Generated(NamedTuple):
    """Texts of answers and what was thought before them.

    text: what `Reasoner.generate` gives without the thoughts.
    thinking: of all questions together, one row each.
    """

    text: str | list[str] | list[list[str]]
    thinking: ReasoningResult


@dataclass(frozen=True)
class ReasoningResult:
    """The end of thinking, ready for the answer.

    thought: what the answer continues from.
    prompt: token ids [B, P] fed first.
    prompt_text: the part of the answer's text that the prompt already holds.
    forward_passes: sequential calls after the question's prefill (T for KaVa; spec, Evaluation).
    prefill_passes: calls that belong to the prefill.
    latent_states: last layer's states of the latents after the last pass, [B, M, d], if any.
    """

    thought: Thought
    prompt: Tensor
    prompt_text: str
    forward_passes: int
    prefill_passes: int
    latent_states: Tensor | None = None
