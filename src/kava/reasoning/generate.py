"""Generation of answers after the reasoning, with transformers' `generate`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import BoolTensor, LongTensor, Tensor
from transformers import (
    EosTokenCriteria,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    StopStringCriteria,
)

from kava.backbones import cache
from kava.errors import KavaError
from kava.reasoning import context_window
from kava.reasoning.answers import ReasoningResult
from kava.reasoning.interface import ReasonerBase


@dataclass(frozen=True)
class Continuation:
    """New tokens after the reasoning; several rows per question if several answers are requested.

    Args:
        ids: [batch, columns], token ids, padded after the end of each row.
        lengths: [batch], number of tokens of each row, including the token that ended it.
        finished: [batch], false if `max_new_tokens`, `max_time` or the backbone's positions cut the
            row off.
    """

    ids: Tensor
    lengths: Tensor
    finished: Tensor


def check_whole_number(name: str, value: Any, minimum: int) -> None:
    """Check that a value is a whole number of at least `minimum`.

    Raises:
        KavaError: it is not.
    """
    if type(value) is not int or value < minimum:
        raise KavaError(
            f"{name} is {value!r}; give a whole number, {minimum} or more",
            code="reasoning.bad-number",
            key=name.rpartition(": ")[2],
        )


#: Options of `generate` that are not possible after latent reasoning: the neutral value, which is
#: accepted and ignored, and what to do instead.
_REFUSED: dict[str, tuple[Any, str]] = {
    "use_cache": (True, "an answer continues from the KV cache of the latents; omit it"),
    "return_dict_in_generate": (False, "use Reasoner.answer, which returns more than the text"),
    "generation_config": (None, "pass its fields as options, such as do_sample=True"),
    "max_length": (None, "it would count the question too; use max_new_tokens"),
    "min_length": (0, "it would count the question too; use min_new_tokens"),
    "cache_implementation": (None, "an answer continues from the KV cache of the latents"),
    **dict.fromkeys(
        (
            "inputs", "input_ids", "inputs_embeds", "attention_mask", "position_ids",
            "past_key_values",
        ),
        (None, "its input is the question and the latents"),
    ),
    "synced_gpus": (False, "omit it"),
    # Of transformers' pipeline:
    "return_tensors": (False, "use Reasoner.continue_from, which returns token ids"),
    "return_text": (True, "the text is always returned"),
    "return_type": (None, "return_full_text controls whether the question is returned too"),
    "clean_up_tokenization_spaces": (None, "the tokenizer's own setting is used"),
    "handle_long_generation": (None, "a question that is too long is refused"),
    "truncation": (False, "a question that is too long is refused"),
    "prefix": (None, "put it into the question"),
    "stop_sequence": (None, "use stop_strings"),
    "continue_final_message": (False, "a reasoner always starts its answer itself"),
    "tokenizer_encode_kwargs": (None, "questions are encoded as in training"),
}  # fmt: skip


def drop_neutral_options(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options without those that are impossible but have their neutral value.

    Raises:
        KavaError: an option is not possible; the error names it.
    """
    for name, (nothing, instead) in _REFUSED.items():
        value = options.get(name)
        if value is not None and value is not nothing:
            raise KavaError(
                f"{name} is not supported by a reasoner; {instead}",
                code="reasoning.option-not-possible",
                key=name,
            )
    return {name: value for name, value in options.items() if name not in _REFUSED}


def generate_tokens(
    reasoner: ReasonerBase, reasoning: ReasoningResult, max_new_tokens: int, options: dict[str, Any]
) -> Continuation:
    """Generate new tokens after the reasoning; see `Reasoner.continue_from`."""
    check_whole_number("max_new_tokens", max_new_tokens, 1)
    options = drop_neutral_options(options)
    context, prompt = reasoning.cache, reasoning.prompt
    if reasoner.has_sliding_window:
        # generate() measures a sliding window in columns, so the cache must have no holes.
        context = context.pack()
    mask = torch.cat((context.attention_mask, torch.ones_like(prompt, dtype=torch.bool)), 1)
    left = _new_tokens_left(reasoner, mask, max_new_tokens)
    fields = GenerationConfig().to_dict()
    settings = {key: value for key, value in options.items() if key in fields}
    others = {key: value for key, value in options.items() if key not in fields}
    tokenizer, ids = reasoner.tokenizer, {}
    for name in ("eos_token_id", "pad_token_id"):
        given = settings.pop(name, None)
        ids[name] = getattr(tokenizer, name) if given is None else given
    config = GenerationConfig(max_new_tokens=max(left), **ids, **({"do_sample": False} | settings))
    if (config.min_new_tokens or 0) > min(left):
        raise KavaError(
            f"min_new_tokens is {config.min_new_tokens}, but there is room for {min(left)} new "
            "tokens (limited by max_new_tokens and the backbone's positions)",
            code="reasoning.minimum-too-high",
            key="min_new_tokens",
        )
    processors = LogitsProcessorList([*(others.pop("logits_processor", None) or ())])
    if reasoner.unreadable_ids is not None:
        processors.insert(0, _Never(reasoner.unreadable_ids))
    if config.repetition_penalty not in (None, 1):
        # generate() would skip as many tokens here as there are padding tokens before the question.
        processors.insert(0, RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
        config.repetition_penalty = None
    # The criteria are wrapped by our own, which records whether one of them ends a row.
    stops = StoppingCriteriaList([*(others.pop("stopping_criteria", None) or ())])
    if ids["eos_token_id"] is not None:
        stops.append(EosTokenCriteria(ids["eos_token_id"]))
    if config.stop_strings is not None:
        stops.append(StopStringCriteria(others.get("tokenizer", tokenizer), config.stop_strings))
        config.stop_strings = None
    past = cache.fork(context.past_key_values)
    # generate() repeats the rows for beams and further answers, but not those of a given cache.
    beams = config.num_beams or 1
    copies = max(beams, config.num_return_sequences or 1)
    if copies > 1:
        past.batch_repeat_interleave(copies)
    ends = (_EndsOfBeams if beams > 1 else _EndsOfRows)(stops, prompt.shape[1], left)
    most = context_window.max_positions(reasoner)
    uneven = min(left) < max(left)
    with nullcontext() if most is None or not uneven else _no_position_from(reasoner.lm, most):
        new = cast(Any, reasoner.lm).generate(  # its stubs say that it is a tensor
            input_ids=prompt,
            attention_mask=mask.long(),
            past_key_values=past,
            generation_config=config,
            logits_processor=processors,
            stopping_criteria=StoppingCriteriaList([ends]),
            synced_gpus=False,  # not needed: `kava.system.sharded` gathers the weights of FSDP
            **others,
        )
    return ends.continuation(new[:, prompt.shape[1] :])


def _new_tokens_left(reasoner: ReasonerBase, mask: Tensor, max_new_tokens: int) -> list[int]:
    """Return the maximum number of new tokens of each row.

    This is `max_new_tokens`, or less if the backbone does not have enough positions.

    Args:
        mask: [batch, columns], mask of everything before the new tokens.

    Raises:
        KavaError: the question leaves no room for an answer.
    """
    most = context_window.max_positions(reasoner)
    if most is None:
        return [max_new_tokens] * mask.shape[0]
    before = mask.sum(1).tolist()
    if max(before) >= most:
        raise KavaError(
            f"{max(before)} tokens of question, latents and answer prompt leave no room for an "
            f"answer: the backbone has {most} positions; ask a shorter question",
            code="reasoning.no-room-for-answer",
        )
    return [min(max_new_tokens, most - tokens) for tokens in before]


class _Never(LogitsProcessor):
    """Logits processor that excludes token ids by a mask.

    transformers' own searches a list of ids for each id of the vocabulary, at each token.

    Args:
        mask: boolean, [vocabulary]; true for excluded ids.
    """

    def __init__(self, mask: Tensor):
        self.mask = mask

    def __call__(self, input_ids: LongTensor, scores: Any) -> Any:
        """Return the scores [batch, vocabulary] with -inf for excluded ids."""
        return scores.masked_fill(self.mask, -torch.inf)


class _Ends(StoppingCriteria):
    """Stopping criterion that also limits the tokens of each row and records where rows ended.

    Args:
        criteria: the wrapped criteria; they are called once per token, as without this wrapper.
        start: the column at which new tokens begin.
        remaining: maximum number of new tokens of each row; it applies to all copies of the row.
    """

    def __init__(self, criteria: StoppingCriteriaList, start: int, remaining: Sequence[int]):
        self.criteria, self.start, self.remaining = criteria, start, torch.tensor(remaining)

    def __call__(self, input_ids: LongTensor, scores: Any, **more: Any) -> BoolTensor:
        """Return whether each row ends here or has ended before, [batch]."""
        self.remaining = self.remaining.to(input_ids.device, non_blocking=True)
        tokens, copies = input_ids.shape[1] - self.start, input_ids.shape[0] // len(self.remaining)
        finished = self.criteria(input_ids, scores, **more)
        full = self.remaining.repeat_interleave(copies) <= tokens
        self.record(input_ids[:, self.start :], finished, full)
        return cast(BoolTensor, finished | full)

    def record(self, ids: Tensor, finished: Tensor, full: Tensor) -> None:
        """Record which rows end at this token.

        Args:
            ids: [batch, columns], new tokens so far.
            finished: [batch], true for rows that a criterion ends.
            full: [batch], true for rows that have no tokens left.
        """
        raise NotImplementedError

    def continuation(self, ids: Tensor) -> Continuation:
        """Return the continuation for the generated rows `ids`, [batch, columns]."""
        raise NotImplementedError


class _EndsOfRows(_Ends):
    """Stopping criterion for rows that keep their index; it does not synchronize with the GPU."""

    lengths: Tensor | None = None

    def record(self, ids: Tensor, finished: Tensor, full: Tensor) -> None:
        """Record which rows end at this token, see the base class."""
        if self.lengths is None:
            self.lengths = torch.zeros(len(ids), dtype=torch.long, device=ids.device)
            self.finished = torch.zeros_like(self.lengths, dtype=torch.bool)
        first = (self.lengths == 0) & (finished | full)
        self.lengths = self.lengths.masked_fill(first, ids.shape[1])
        self.finished = self.finished | (first & finished)

    def continuation(self, ids: Tensor) -> Continuation:
        """Return the continuation for the generated rows, [batch, columns].

        A row that has not ended was cut off after its last token.
        """
        lengths = cast(Tensor, self.lengths)  # not None: at least one token was generated
        lengths = lengths.masked_fill(lengths == 0, ids.shape[1])
        return Continuation(ids, lengths, self.finished)


class _EndsOfBeams(_Ends):
    """Stopping criterion for beams, whose index changes; they are identified by their tokens."""

    def __init__(self, *given: Any):
        super().__init__(*given)
        #: Maps (row of the batch, tokens up to the end) to whether a criterion ended the beam.
        self.ended: dict[tuple[int, tuple[int, ...]], bool] = {}

    def record(self, ids: Tensor, finished: Tensor, full: Tensor) -> None:
        """Record which beams end at this token, [batch * beams]; see the base class."""
        beams = len(ids) // len(self.remaining)
        for i in (finished | full).nonzero().flatten().tolist():
            self.ended.setdefault((i // beams, tuple(ids[i].tolist())), bool(finished[i]))

    def continuation(self, ids: Tensor) -> Continuation:
        """Return the continuation for the generated rows, [batch * answers, columns]."""
        answers, lengths, finished = len(ids) // len(self.remaining), [], []
        for i, row in enumerate(ids.tolist()):
            ends = [n for n in range(1, len(row)) if (i // answers, tuple(row[:n])) in self.ended]
            lengths.append(min(ends, default=len(row)))
            finished.append(self.ended.get((i // answers, tuple(row[: lengths[-1]])), False))
        return Continuation(ids, *(torch.tensor(t, device=ids.device) for t in (lengths, finished)))


@contextmanager
def _no_position_from(lm: PreTrainedModel, most: int) -> Iterator[None]:
    """Clamp position ids to at most `most` - 1 inside the `with` block.

    A row that has reached the last position is padded while the other rows of the batch continue.
    Without the limit, its padding would use learned positions that do not exist, or change a rotary
    embedding that depends on the highest position, and thereby the other rows.
    """

    def clamp(_: Any, args: tuple, call: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if call.get("position_ids") is not None:
            call["position_ids"] = call["position_ids"].clamp(max=most - 1)
        return args, call

    hook = lm.register_forward_pre_hook(clamp, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()
