"""What a training would cost, without training: steps, token-forwards, memory.

A token-forward is one column of one row that goes through the backbone in the forward direction,
pads included (they cost what tokens cost); a latent counts once per pass. They are counted, not
derived: the recipe's own method runs on a tiny random backbone of the recipe's family, on rows as
long as those of the data, and a hook on the backbone counts what comes in. Validation is not in.
"""

from __future__ import annotations

import math
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from kava.backbones import loading
from kava.backbones.tiny import tiny_backbone
from kava.data import data_sets, load_examples
from kava.errors import KavaError
from kava.reasoning import batching, checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry
from kava.recipe.schema import Data, Recipe
from kava.sweeps import memory as memories
from kava.sweeps.memory import Call, Memory, Traffic
from kava.system import hub
from kava.system.environment import default_device
from kava.training.arguments import check_schedule, rows_at_once
from kava.training.smoke import family
from kava.types import Example

SAMPLE = 256  # rows that are counted, drawn at random
STAGED = 32  # micro-batches that are counted, about, where a method has stages

# Assumed where rows or the tokenizer are not on this machine, for a row of GSM8k-Aug: tokens of the
# question with BOS, of all steps, of the answer with its prompt and EOS (ours; counted as words,
# numbers and signs, 9,915 rows have 49 in their questions and 29 in 3.0 steps). Sentences are taken
# to be twice as long as equations (in GSM8K's training rows, 64 words and signs against 31).
QUESTION, REASONING, ANSWER, STEPS = 65, 41, 8, 3
SENTENCES = 2

Batch = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """Of one training. None is what could not be found out.

    notes: why not, and what was assumed.
    refusal: why the training would not begin; empty where it would.
    """

    steps: int | None
    token_forwards: int | None
    memory: Memory | None
    notes: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Rows:
    """The training rows of a recipe; only their number, if known, where they are not at hand."""

    examples: Sequence[Example] | None
    count: int | None
    why_not: str = ""


@dataclass
class Estimator:
    """Finds out the cost of recipes; what several share is done once. Downloads nothing.

    device: of the memory, `cpu` or `cuda`; this machine's if None.
    """

    device: str | None = None
    _rows: dict[str, Rows] = field(default_factory=dict)
    _costs: dict[str, Cost] = field(default_factory=dict)

    def cost(self, recipe: Recipe, processes: int = 1) -> Cost:
        """Of training by `recipe`; the seed makes no difference.

        Args:
            processes: that share the batch; the memory is that of one of them.
        """
        key = repr((recipe.model_copy(update={"seed": 0}), processes))
        if key not in self._costs:
            device = self.device or default_device()
            with hub.offline():
                rows = self.rows(recipe.data)
                self._costs[key] = _cost(recipe, rows, device, processes)
        return self._costs[key]

    def rows(self, data: Data) -> Rows:
        """The training rows, read once."""
        key = repr((data.train, data.train_rows, data.options))
        if key not in self._rows:
            self._rows[key] = _read(data)
        return self._rows[key]


def _cost(recipe: Recipe, rows: Rows, device: str, processes: int) -> Cost:
    notes: list[str] = []
    steps = total_steps(recipe, rows.count)
    if steps is None:
        notes.append(f"steps not known: {rows.why_not}")
    tokenizer, examples = text(recipe, rows, notes)
    forwards = memory = None
    refusal = ""
    try:
        with tiny_reasoner(recipe, tokenizer) as reasoner:
            batches = sample(reasoner, examples, rows_at_once(recipe.train, processes))
            if steps is not None:
                forwards = count(reasoner, batches, steps, rows.count or len(examples))
            if rows.count:
                known = batches if examples is rows.examples else []
                refusal = _refusal(reasoner, known, rows.count)
            seen = peak(reasoner, batches)
    except KavaError as error:
        notes.append(f"not counted: {error}")
    else:
        try:
            memory = memories.estimate(recipe, seen, device)
        except KavaError as error:
            notes.append(f"memory not known: {error}")
    return Cost(steps, forwards, memory, tuple(notes), refusal)


def _refusal(reasoner: Reasoner, batches: Sequence[Batch], rows: int) -> str:
    """Why the training would not begin; the longest steps of all rows are at least a sample's."""
    longest = max((int(batch["steps_mask"].sum(1).max()) for batch in batches), default=0)
    try:
        check_schedule(reasoner, longest, rows)
    except KavaError as error:
        return str(error)
    return ""


# -- steps and token-forwards --------------------------------------------------------------------


def total_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Optimiser steps; None where they depend on a number of rows that is not known."""
    train = recipe.train
    if train.steps or rows is None:
        return train.steps
    return math.ceil(train.epochs * math.ceil(rows / train.batch_size))


def rows_seen(steps: int, rows: int, batch_size: int) -> int:
    """Rows in the first `steps` batches; the last batch of an epoch may be smaller."""
    epochs, rest = divmod(steps, math.ceil(rows / batch_size))
    return epochs * rows + min(rest * batch_size, rows)


def count(reasoner: Reasoner, batches: Sequence[Batch], steps: int, rows: int) -> int:
    """Token-forwards of a training of `steps`: those of a sample of micro-batches, scaled up.

    A method with stages is counted stage by stage, each weighed with the rows that fall into it.
    """
    batch_size = reasoner.recipe.train.batch_size
    spans = stages(reasoner, steps, rows)
    each = len(batches) if len(spans) == 1 else max(1, STAGED // len(spans))
    total = 0.0
    for i, (begin, end) in enumerate(spans):
        chosen = [batches[(i + j) % len(batches)] for j in range(min(each, len(batches)))]
        tokens = traffic(reasoner, chosen, begin / math.ceil(rows / batch_size)).tokens
        seen = rows_seen(end, rows, batch_size) - rows_seen(begin, rows, batch_size)
        total += seen * tokens / sum(batch["question"].shape[0] for batch in chosen)
    return round(total)


def stages(reasoner: Reasoner, steps: int, rows: int) -> list[tuple[int, int]]:
    """Stretches of steps, from the first to before the last, in which the method does the same."""
    per_epoch = math.ceil(rows / reasoner.recipe.train.batch_size)
    found = [reasoner.method.stage(step / per_epoch) for step in range(steps)]
    changes = [step for step in range(1, steps) if found[step] != found[step - 1]]
    return list(pairwise([0, *changes, steps]))


@torch.no_grad()
def traffic(reasoner: Reasoner, batches: Sequence[Batch], epoch: float) -> Traffic:
    """Run the loss of each batch at a point of the training; what goes into the backbone."""
    calls, labels = [], []

    def enters(module: nn.Module, args: tuple, inputs: Batch) -> None:
        rows, columns = inputs["inputs_embeds"].shape[:2]
        mask = inputs["attention_mask"]
        if isinstance(mask, dict):  # one for each kind of layer, of one shape
            mask = next(iter(mask.values()))
        calls.append(Call(rows, columns, mask.shape[-1]))

    def is_read(module: nn.Module, args: tuple) -> None:
        labels.append(args[0].shape[:-1].numel())

    hooks = [
        reasoner.lm.base_model.register_forward_pre_hook(enters, with_kwargs=True),
        reasoner.lm.get_output_embeddings().register_forward_pre_hook(is_read),
    ]
    try:
        for batch in batches:
            _loss(reasoner, batch, epoch)
    finally:
        for hook in hooks:
            hook.remove()
    return Traffic(calls, sum(labels))


def _loss(reasoner: Reasoner, batch: Batch, epoch: float) -> None:
    batch = reasoner.apply_stage(batch, epoch)
    reasoner(counts=reasoner.method.counts(batch), **batch)


def peak(reasoner: Reasoner, batches: Sequence[Batch]) -> Traffic:
    """Of the widest micro-batch, at the beginning or the end of the training."""
    one = widest(batches)
    return max(
        (traffic(reasoner, [one], epoch) for epoch in (0.0, math.inf)), key=lambda t: t.tokens
    )


def widest(batches: Sequence[Batch]) -> Batch:
    """The micro-batch with the most columns."""
    return max(batches, key=lambda b: sum(b[k].numel() for k in ("question", "steps", "answer")))


@contextmanager
def tiny_reasoner(recipe: Recipe, tokenizer: Any) -> Iterator[Reasoner]:
    """The recipe's method on a tiny backbone of its family, reading with the given tokenizer.

    Raises:
        KavaError: there is no such family or method, or they do not fit.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tiny_backbone(family(recipe), Path(scratch))
        small = recipe.model_copy(update={"backbone": scratch, "revision": None})
        reasoner = Reasoner.build(small)
        reasoner.encoder = batching.Encoder(tokenizer, recipe.drop_last_step)
        yield reasoner


def sample(reasoner: Reasoner, examples: Sequence[Example], size: int | None = None) -> list[Batch]:
    """Micro-batches of rows drawn at random, their tokens replaced by some that the model has.

    Args:
        size: of a micro-batch; the recipe's if not given.
    """
    drawn = random.Random(0).sample(list(examples), min(SAMPLE, len(examples)))
    rows, train = reasoner.encoder.rows(drawn), reasoner.recipe.train
    size = size or train.micro_batch_size or train.batch_size
    known = reasoner.lm.get_input_embeddings().weight.shape[0]
    tokens = ("question", "steps", "answer", "teacher_ids", "answer_ids")
    batches = [batching.collate(rows[at : at + size], pad_id=0) for at in range(0, len(rows), size)]
    return [{**batch, **{name: batch[name] % known for name in tokens}} for batch in batches]


# -- rows and their lengths ----------------------------------------------------------------------


def _read(data: Data) -> Rows:
    try:
        examples = load_examples(data.train, "train", limit=data.train_rows, options=data.options)
        return Rows(examples, len(examples))
    except KavaError as error:
        return Rows(None, _published_rows(data), str(error))


def _published_rows(data: Data) -> int | None:
    """Rows of a data set of this package that is not on this machine."""
    if data.train not in data_sets():
        return None
    rows = getattr(registry.module("data", data.train), "ROWS", {}).get("train")
    return min(rows, data.train_rows or rows) if rows else None


def text(recipe: Recipe, rows: Rows, notes: list[str]) -> tuple[Any, Sequence[Example]]:
    """A tokenizer and rows to count with; both made up unless both are on this machine."""
    if rows.examples is None:
        lacking = f"the rows of {recipe.data.train} are"
    else:
        try:
            folder, _ = loading.locate(recipe.backbone, recipe.revision)
            if checkpoint.is_checkpoint(folder):
                folder = checkpoint.locate(folder)
            return loading.load_tokenizer(folder), rows.examples
        except KavaError:
            lacking = f"the tokenizer of {recipe.backbone} is"
    sentences = recipe.data.options.get("form") == "natural"
    tokens = REASONING * (SENTENCES if sentences else 1)
    dropped = ", the last of which is dropped" if recipe.drop_last_step else ""
    number = f"{rows.count:,} rows" if rows.count else "rows"
    notes.append(
        f"{lacking} not on this machine; assumed: {number} of question {QUESTION}, reasoning "
        f"{tokens} in {STEPS} steps{dropped}, answer {ANSWER} tokens (GSM8k-Aug)"
    )
    return _words(), [_assumed(tokens)] * SAMPLE


def _assumed(reasoning: int) -> Example:
    """A row of the assumed lengths in words; see `_words`."""
    bounds = [reasoning * i // STEPS for i in range(STEPS + 1)]
    steps = tuple(" ".join("w" * (end - begin)) for begin, end in pairwise(bounds))
    beside = 5  # "The", "answer", "is", ":" and EOS
    return Example(
        "assumed", " ".join("w" * (QUESTION - 1)), steps, " ".join("w" * (ANSWER - beside))
    )


def _words() -> PreTrainedTokenizerFast:
    """A token per word or sign."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)
