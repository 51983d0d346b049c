"""What a reasoner does with questions: it reasons about them, and then answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from kava.backbones import masks
from kava.errors import KavaError
from kava.reasoning import context_window
from kava.reasoning.answers import Answer, GenerateOutput, ReasoningResult
from kava.reasoning.generate import Continuation, check_whole_number, generate_tokens
from kava.reasoning.interface import ReasonerBase
from kava.reasoning.methods import LatentMethod, latent_embeds
from kava.system.text import check_text


class AnsweringReasoner(ReasonerBase):
    """The part of `kava.Reasoner` that answers questions; it needs no training."""

    #: Whether answers use autocast if training by the recipe does (`autocast`).
    follows_training: bool

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which answers are computed: autocast as in training, or none.

        This is bf16 autocast on a GPU by default, and on any device if the recipe's
        `train.precision` is bf16; on a CPU, that can be slower. There is none for a checkpoint that
        was loaded with `dtype=torch.float32`.
        """
        enabled = self.follows_training and self.recipe.train.autocasts(self.device.type)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def generate(
        self,
        questions: str | Sequence[str],
        max_new_tokens: int = 256,
        num_iterations: int | Literal["auto"] | None = None,
        return_reasoning: bool = False,
        **options: Any,
    ) -> str | list[str] | list[list[str]] | GenerateOutput:
        """Answer one question, or several as a batch.

        Args:
            questions: a question, or a list of questions.
            max_new_tokens: maximum number of tokens of an answer; it ends earlier if the backbone
                has no more positions (see `continue_from`).
            num_iterations: T; by default that of the recipe. With "auto", each question iterates
                until its latents no longer change: `tolerance` and `max_iterations` of the recipe.
            return_reasoning: also return the result of the reasoning, see `GenerateOutput`.
            options: see `continue_from`.

        Returns:
            The text of the answer for one question, a list of texts for a list of questions. With
            `num_return_sequences` above 1, there is a list of texts in place of each text.

        Raises:
            KavaError: see `think` and `continue_from`.
        """
        reasoning = self.think(questions, num_iterations)
        texts = [one.text for one in self.answer(reasoning, max_new_tokens, **options)]
        copies = options.get("num_return_sequences") or 1
        if copies > 1:
            texts = [texts[at : at + copies] for at in range(0, len(texts), copies)]
        text = texts[0] if isinstance(questions, str) else texts
        return GenerateOutput(text, reasoning) if return_reasoning else text

    def think(
        self, questions: str | Sequence[str], num_iterations: int | Literal["auto"] | None = None
    ) -> ReasoningResult:
        """Prefill questions and reason about them, without answering yet.

        Args:
            questions: a question, or a list of questions.
            num_iterations: T; by default that of the recipe.

        Returns:
            The KV cache, and the prompt with which an answer continues from it.

        Raises:
            KavaError: no question is given; a question is empty, not valid Unicode, or too long for
                the backbone's positions (`kava.reasoning.context_window`); or `num_iterations` is
                not a whole number, or is given for a method that does not iterate.
        """
        return self.think_about(self.encoder.questions(_check_questions(questions)), num_iterations)

    @torch.no_grad()
    def think_about(
        self, encoded: Sequence[Sequence[int]], num_iterations: int | Literal["auto"] | None = None
    ) -> ReasoningResult:
        """Reason about questions that are already token ids (`Encoder.questions`); see `think`."""
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        context_window.check(self, encoded)
        ids, mask = masks.pad(encoded, "left", self.tokenizer.pad_token_id)
        ids, mask = (part.to(self.device, non_blocking=True) for part in (ids, mask))
        with self.autocast():
            return self.method.think(self, ids, mask, num_iterations)

    def check_iterations(self, num_iterations: int | Literal["auto"] = 0) -> None:
        """Check that the method iterates and that the number of iterations is valid.

        Raises:
            KavaError: the method does not iterate, or the number is neither a whole number from 0
                on nor "auto", or it is "auto" and the method needs a number.
        """
        if num_iterations != "auto":
            check_whole_number("num_iterations", num_iterations, 0)
        if not self.method.iterates:
            raise KavaError(
                f"method '{self.recipe.method}' does not iterate; the number of iterations cannot "
                "be chosen",
                code="reasoning.no-iterations",
                key=self.recipe.method,
            )
        if num_iterations == "auto" and not self.method.finds_iterations:
            raise KavaError(
                f"method '{self.recipe.method}' computes its latents in a window, for a number of "
                "iterations that is known; give a number in place of auto",
                code="reasoning.no-auto",
                key="num_iterations",
            )

    @torch.no_grad()
    def prompt_embeds(self, question: str, num_iterations: int | None = None) -> Tensor:
        """Return a question, its latents and the answer prompt as input embeddings.

        The backbone itself (`lm`, with its adapter), or any engine that accepts embeddings as
        input, continues them in the same way as `answer` does: the inputs of the latents in the
        last pass yield the keys and values of that pass.

        Args:
            question: a single question.
            num_iterations: T; by default that of the recipe.

        Returns:
            [1, columns, hidden], the embeddings of question, <bot>, latents, <eot> and "The answer
            is:"; for a method without latents, those of question and prompt.

        Raises:
            KavaError: see `think`; or several questions are given.
        """
        if not isinstance(question, str):
            raise KavaError(
                "prompt_embeds takes a single question: several have different lengths, and "
                "embeddings have no mask; call it once per question",
                code="reasoning.one-question",
                key="question",
            )
        if num_iterations is not None:
            self.check_iterations(num_iterations)
        (ids,) = self.encoder.questions(_check_questions(question))
        context_window.check(self, [ids])
        tokens = torch.tensor([ids], device=self.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        if isinstance(self.method, LatentMethod):
            iterations = self.recipe.num_iterations if num_iterations is None else num_iterations
            state = self.method.think_in_latents(self, tokens, mask, iterations)
            reasoning = self.method.finish_thinking(self, state, iterations)
            parts = [self.embed(tokens), latent_embeds(self, state)]
        else:
            reasoning = self.method.think(self, tokens, mask)
            parts = [self.embed(tokens[:, : reasoning.cache.columns])]
        return torch.cat([*parts, self.embed(reasoning.prompt)], dim=1)

    def answer(
        self, reasoning: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> list[Answer]:
        """Generate the answers after a reasoning result; see `continue_from`.

        With `num_return_sequences`, the answers to the same question are consecutive.
        """
        found = self._generate_tokens(reasoning, max_new_tokens, options)
        parts = (found.ids.tolist(), found.lengths.tolist(), found.finished.tolist())
        copies = len(found.lengths) // len(reasoning.prompt)
        return [
            Answer(
                text=reasoning.text(self.tokenizer, i // copies, row[:length]),
                # The paper does not define this number. Here it is T, and one for each generated
                # token, EOS included.
                forward_passes=reasoning.passes(i // copies) + length,
                prefill_passes=reasoning.prefill_passes,
                generated_tokens=length,
                finished=finished,
            )
            for i, (row, length, finished) in enumerate(zip(*parts, strict=True))
        ]

    def continue_from(
        self, reasoning: ReasoningResult, max_new_tokens: int = 256, **options: Any
    ) -> Tensor:
        """Generate the answer with transformers' `generate`; greedy decoding by default.

        Token ids for which the tokenizer has no text are never generated.

        Args:
            reasoning: the result of `think`, from which the answer continues.
            max_new_tokens: an upper bound. A row also ends, unfinished, where the backbone has no
                more positions. A small backbone therefore needs no other bound, and the tokens of a
                row do not depend on the other rows of the batch, but for rounding.
            options: fields of `GenerationConfig` (`do_sample`, `temperature`, `eos_token_id`, ...)
                and arguments of `generate` itself (`streamer`, `stopping_criteria`,
                `logits_processor`, ...). `stop_strings` use the reasoner's tokenizer;
                `repetition_penalty` and similar options take the answer prompt and the new tokens
                into account, but not the question.

        Returns:
            New token ids, [batch, columns], padded after the end of each row.

        Raises:
            KavaError: there is no room for one new token or for `min_new_tokens`; `max_new_tokens`
                is not a whole number above 0; or an option is not possible here, such as
                `use_cache`.
        """
        return self._generate_tokens(reasoning, max_new_tokens, options).ids

    @torch.no_grad()
    def _generate_tokens(
        self, reasoning: ReasoningResult, max_new_tokens: int, options: dict[str, Any]
    ) -> Continuation:
        with self.autocast():
            return generate_tokens(self, reasoning, max_new_tokens, options)

    def generated_lengths(self, ids: Tensor) -> Tensor:
        """Return the number of generated tokens of each row, [batch]; with EOS, without padding."""
        ended = (ids == self.tokenizer.eos_token_id).long().cumsum(1)
        return ((ended - (ids == self.tokenizer.eos_token_id).long()) == 0).sum(1)


def _check_questions(questions: str | Sequence[str]) -> list[str]:
    """Return the questions as a list, after checking that each is a valid text.

    Raises:
        KavaError: no question is given, or one is empty, not a text, or not valid Unicode.
    """
    if isinstance(questions, Mapping):
        raise KavaError(
            f"a question must be a string, not a {type(questions).__name__}; for chat messages, "
            "use kava.pipeline",
            code="reasoning.not-a-question",
            key=type(questions).__name__,
        )
    texts = [questions] if isinstance(questions, str) else list(questions)
    if not texts:
        raise KavaError("no question was given", code="reasoning.no-question")
    for place, text in enumerate(texts):
        where = "the question" if isinstance(questions, str) else f"question {place + 1}"
        if not isinstance(text, str) or not text.strip():
            raise KavaError(
                f"{where} must be a non-empty string, not {text!r}",
                code="reasoning.empty-question",
                key=where,
            )
        check_text(text, where)
    return texts
