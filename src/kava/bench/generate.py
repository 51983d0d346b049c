"""The benchmark `kava bench generate`: answers with chain of thought, without, or with latents."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from kava.backbones import cache, masks
from kava.bench import flops
from kava.bench.shapes import Lengths, random_rows
from kava.bench.timing import Piece, spread
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.methods import Work, consecutive_passes
from kava.reasoning.reasoner import Reasoner
from kava.system.memory import peak_memory


@dataclass
class Generation:
    """A batch of questions for a model, and the number of tokens of each answer.

    Answers have a fixed length, since random weights would end them anywhere: the tokens of the
    answer after its prompt and, if the method writes a chain of thought, also those of the chain
    and the prompt.
    """

    reasoner: Reasoner
    question: Tensor
    mask: Tensor
    new_tokens: int

    @classmethod
    def build(cls, reasoner: Reasoner, lengths: Lengths, batch: int) -> Generation:
        """Create a batch of random questions of similar length, as the evaluation sorts them.

        Raises:
            KavaError: the answer is too short, or the backbone's FLOPs cannot be counted.
        """
        flops.cost(reasoner, training=False)  # raises before anything is timed
        reasoner.eval().requires_grad_(False)
        return cls(reasoner, *_questions(reasoner, lengths, batch))

    def renew(self, lengths: Lengths, seed: int) -> None:
        """Replace the questions by others, drawn with this seed."""
        drawn = _questions(self.reasoner, lengths, len(self.question), seed)
        self.question, self.mask, self.new_tokens = drawn

    @torch.no_grad()
    def think(self) -> ReasoningResult:
        """Run everything before the answer: the prefill, with the latents."""
        with self.reasoner.autocast():
            return self.reasoner.method.think(self.reasoner, self.question, self.mask)

    def generate(self) -> None:
        """Run everything from the question to the last token of the answer."""
        self.reasoner.continue_from(self.think(), self.new_tokens, min_new_tokens=self.new_tokens)

    def work(self) -> tuple[Work, Work] | None:
        """Return the minimum work of the prefill and of the whole answer.

        It is None if the method does not state it.
        """
        lengths, recipe = self.mask.sum(1), self.reasoner.recipe
        prefill = self.reasoner.method.reasoning_work(lengths, recipe.num_iterations)
        if prefill is None:
            return None
        reasoning = self.think()
        # The model reads in sequence: the prompt, then each token except the last.
        context_tokens = reasoning.cache.attention_mask.sum(1)
        prompt_tokens = reasoning.prompt.shape[1]
        answer = consecutive_passes(
            prompt_tokens, *[1] * (self.new_tokens - 1), after=context_tokens
        )
        labels = self.new_tokens * len(lengths)
        whole = Work([*prefill.forward_passes, *answer], labels, prefill.num_projected)
        if recipe.method == "cot":  # the question's last token is the prompt: counted once
            whole = Work([*consecutive_passes(lengths - 1), *answer], labels)
            prefill = Work(consecutive_passes(lengths - 1), 0)
        return prefill, whole

    def record(self, prefill: list[float], total: list[float], rate: float) -> dict[str, Any]:
        """Return all measurements of one model and batch size.

        Args:
            prefill: seconds of `think`.
            total: seconds of `generate`.
            rate: the machine's FLOPs per second in large matrix products.
        """
        rows, works = self.question.shape[0], self.work()
        least_prefill, least = works or (None, None)
        cost = flops.cost(self.reasoner, training=False)
        counted = flops.count_flops(self.generate)
        times, first = spread(total), spread(prefill)
        middle = times["median"] / 1000
        with peak_memory(self.reasoner.device) as peak:
            self.generate()
        reasoning = self.think()
        columns = reasoning.cache.columns + reasoning.prompt.shape[1] + self.new_tokens - 1
        # For CoT, the prompt is the question's last token, cached only with the first new token.
        cache_bytes = cache.size_in_bytes(reasoning.cache.past_key_values)
        return {
            "batch_size": rows,
            "generated_tokens": self.new_tokens,
            "forward_passes": reasoning.forward_passes + self.new_tokens,
            "ms_per_batch": times,
            "ms_prefill": first,
            "ms_per_question": round(times["median"] / rows, 4),
            "questions_per_second": round(rows / middle, 2),
            "tokens_per_second": round(rows * self.new_tokens / middle, 1),
            "token_forwards_least": least.columns if least else None,
            "flops": counted,
            "flops_prefill": flops.count_flops(self.think),
            "flops_least": round(cost.flops(least)) if least else None,
            "flops_prefill_least": round(cost.flops(least_prefill)) if least_prefill else None,
            "flops_over_least": round(counted / cost.flops(least), 4) if least else None,
            "mfu": round(cost.flops(least) / middle / rate, 4) if least else None,
            "cache_bytes": round(cache_bytes * columns / max(reasoning.cache.columns, 1)),
            "repeats": len(total),
            "peak_memory": asdict(peak),
        }


def _questions(
    reasoner: Reasoner, lengths: Lengths, batch: int, seed: int = 0
) -> tuple[Tensor, Tensor, int]:
    """Return questions, left-padded, their mask, and the number of tokens of each answer."""
    rows = random_rows(reasoner, lengths, batch * POOL, seed)
    at = POOL // 2 * batch
    rows = sorted(rows, key=lambda row: len(row.question))[at : at + batch]
    question, mask = masks.pad(
        [row.question for row in rows], "left", reasoner.tokenizer.pad_token_id
    )
    written = max(len(row.steps) for row in rows)
    answer, prompt = max(len(row.answer) for row in rows), len(reasoner.encoder.prompt)
    writes = reasoner.recipe.method == "cot"
    tokens = written + answer if writes else answer - prompt
    return question.to(reasoner.device), mask.to(reasoner.device), tokens


POOL = 10  # examples of similar length are taken from a pool of this many batches


def pieces(generations: dict[str, Generation]) -> dict[str, Piece]:
    """Return the timed functions: the prefill and the whole of each model."""
    found: dict[str, Piece] = {}
    for name, generation in generations.items():
        found[f"{name} prefill"], found[name] = generation.think, generation.generate
    return found
