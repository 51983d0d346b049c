"""Result types of reasoning and of answering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from kava.backbones.masked_cache import MaskedCache


@dataclass(frozen=True)
class Answer:
    """Answer to one question.

    text: the generated text, including the answer prompt.
    forward_passes: number of sequential forward passes of the backbone from the end of the
        question's prefill to the end of the answer (see docs/papers.md, Evaluation).
    prefill_passes: number of forward passes that belong to the prefill.
    generated_tokens: number of tokens generated after the prompt, including EOS.
    finished: false if `max_new_tokens` or the backbone's positions cut the answer off.
    """

    text: str
    forward_passes: int
    prefill_passes: int
    generated_tokens: int
    finished: bool


class GenerateOutput(NamedTuple):
    """Texts of the answers, together with the reasoning before them.

    text: what `Reasoner.generate` returns without `return_reasoning`.
    reasoning: the results of reasoning about all questions as one batch.
    """

    text: str | list[str] | list[list[str]]
    reasoning: ReasoningResult


@dataclass(frozen=True)
class ReasoningResult:
    """Result of the reasoning, from which the answer is generated.

    cache: the KV cache that the answer continues from.
    prompt: [batch, prompt], token ids that are processed first.
    prompt_text: the part of the answer's text that is already in the prompt; None if the prompt is
        the first token that the method generates after <eot>, which each question has its own of.
    forward_passes: number of sequential forward passes after the question's prefill (T for
        KaVa; see docs/papers.md, Evaluation). With `iterations`, the largest of these.
    prefill_passes: number of forward passes that belong to the prefill.
    latent_states: [batch, latents, hidden], hidden states of the latents in the last layer
        after the last pass; None for methods without latents.
    iterations: T of each question, if each has found its own.
    """

    cache: MaskedCache
    prompt: Tensor
    prompt_text: str | None
    forward_passes: int
    prefill_passes: int
    latent_states: Tensor | None = None
    iterations: list[int] | None = None

    def passes(self, row: int) -> int:
        """Return the number of forward passes of the question with this index in the batch."""
        return self.forward_passes if self.iterations is None else self.iterations[row]

    def text(self, tokenizer: Any, row: int, ids: Sequence[int]) -> str:
        """Return the text of an answer, including the prompt.

        Args:
            tokenizer: the reasoner's tokenizer.
            row: index of the question in the batch.
            ids: token ids generated after the prompt.
        """
        before = self.prompt[row].tolist() if self.prompt_text is None else []
        text: str = tokenizer.decode([*before, *ids], skip_special_tokens=True)
        return (self.prompt_text or "") + text
