"""Estimate the cost of a training run without training: steps, token-forwards and memory.

A token-forward is one column of one example that passes forward through the backbone, including
padding (which costs the same as a token). A latent counts once per forward pass. They are counted
rather than derived. The recipe's own method runs on a tiny random backbone of the recipe's family,
on examples as long as those of the data, and a hook on the backbone counts its inputs. Validation
is not included.
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

SAMPLE = 256  # examples that are counted, drawn at random
STAGED = 32  # approximate number of micro-batches counted, if a method has stages

# Assumed if the examples or the tokenizer are not on this machine, for an example of GSM8k-Aug:
# tokens of the question with BOS, of all steps, and of the answer with its prompt and EOS (ours;
# counted as words, numbers and signs, 9,915 examples have 49 in their questions and 29 in 3.0
# steps). Sentences are assumed to be twice as long as equations (in GSM8K's training set, 64 words
# and signs compared with 31).
QUESTION, REASONING, ANSWER, STEPS = 65, 41, 8, 3
SENTENCES = 2

Batch = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """The cost of one training run. None means that a value could not be determined.

    notes: why it could not be determined, and what was assumed.
    refusal: why the training would not begin; empty if it would.
    """

    steps: int | None
    token_forwards: int | None
    memory: Memory | None
    notes: tuple[str, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Rows:
    """The training examples of a recipe, or only their number, if known, when they are not here."""

    examples: Sequence[Example] | None
    count: int | None
    why_not: str = ""


@dataclass
class Estimator:
    """Estimates the cost of recipes, doing shared work once. It downloads nothing.

    device: the device whose memory is estimated, `cpu` or `cuda`; by default that of this machine.
    """

    device: str | None = None
    _rows: dict[str, Rows] = field(default_factory=dict)
    _costs: dict[str, Cost] = field(default_factory=dict)

    def cost(self, recipe: Recipe, processes: int = 1) -> Cost:
        """Estimate the cost of training by `recipe`; the seed makes no difference.

        Args:
            processes: number of processes that share a batch; the memory is that of one of them.
        """
        key = repr((recipe.model_copy(update={"seed": 0}), processes))
        if key not in self._costs:
            device = self.device or default_device()
            with hub.offline():
                rows = self.rows(recipe.data)
                self._costs[key] = _cost(recipe, rows, device, processes)
        return self._costs[key]

    def rows(self, data: Data) -> Rows:
        """Return the training examples, which are read once."""
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
    """Return why the training would not begin, or an empty text.

    The longest chain of thought of all examples is at least as long as that of a sample.
    """
    longest = max((int(batch["steps_mask"].sum(1).max()) for batch in batches), default=0)
    try:
        check_schedule(reasoner, longest, rows)
    except KavaError as error:
        return str(error)
    return ""


# -- steps and token-forwards --------------------------------------------------------------------


def total_steps(recipe: Recipe, rows: int | None) -> int | None:
    """Return the number of optimizer steps; None if it depends on an unknown number of examples."""
    train = recipe.train
    if train.steps or rows is None:
        return train.steps
    return math.ceil(train.epochs * math.ceil(rows / train.batch_size))


def rows_seen(steps: int, rows: int, batch_size: int) -> int:
    """Return the number of examples in `steps` batches; an epoch's last batch may be smaller."""
    epochs, rest = divmod(steps, math.ceil(rows / batch_size))
    return epochs * rows + min(rest * batch_size, rows)


def count(reasoner: Reasoner, batches: Sequence[Batch], steps: int, rows: int) -> int:
    """Count the token-forwards of a training run of `steps` steps, by scaling up a sample.

    A method with stages is counted stage by stage, each weighted by the number of its examples.
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
    """Return the intervals of steps, each without its end, in which the method stays the same."""
    per_epoch = math.ceil(rows / reasoner.recipe.train.batch_size)
    found = [reasoner.method.stage(step / per_epoch) for step in range(steps)]
    changes = [step for step in range(1, steps) if found[step] != found[step - 1]]
    return list(pairwise([0, *changes, steps]))


@torch.no_grad()
def traffic(reasoner: Reasoner, batches: Sequence[Batch], epoch: float) -> Traffic:
    """Compute the loss of each batch at a point of the training; return the backbone's inputs."""
    calls, labels = [], []

    def enters(module: nn.Module, args: tuple, inputs: Batch) -> None:
        rows, columns = inputs["inputs_embeds"].shape[:2]
        mask = inputs["attention_mask"]
        if isinstance(mask, dict):  # one mask per kind of layer, all of one shape
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
    """Return the traffic of the widest micro-batch, at the start or end of training.

    The one with more tokens counts.
    """
    one = widest(batches)
    return max(
        (traffic(reasoner, [one], epoch) for epoch in (0.0, math.inf)), key=lambda t: t.tokens
    )


def widest(batches: Sequence[Batch]) -> Batch:
    """Return the micro-batch with the most columns."""
    return max(batches, key=lambda b: sum(b[k].numel() for k in ("question", "steps", "answer")))


@contextmanager
def tiny_reasoner(recipe: Recipe, tokenizer: Any) -> Iterator[Reasoner]:
    """Build the recipe's method on a tiny backbone of its family, with the given tokenizer.

    Raises:
        KavaError: if there is no such family or method, or they do not fit together.
    """
    with tempfile.TemporaryDirectory() as scratch:
        tiny_backbone(family(recipe), Path(scratch))
        small = recipe.model_copy(update={"backbone": scratch, "revision": None})
        reasoner = Reasoner.build(small)
        reasoner.encoder = batching.Encoder(tokenizer, recipe.drop_last_step)
        yield reasoner


def sample(reasoner: Reasoner, examples: Sequence[Example], size: int | None = None) -> list[Batch]:
    """Draw micro-batches of examples at random, with token ids mapped to ids that the model has.

    Args:
        size: size of a micro-batch; by default that of the recipe.
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
    """Return the number of examples of a data set of this package that is not on this machine."""
    if data.train not in data_sets():
        return None
    rows = getattr(registry.module("data", data.train), "ROWS", {}).get("train")
    return min(rows, data.train_rows or rows) if rows else None


def text(recipe: Recipe, rows: Rows, notes: list[str]) -> tuple[Any, Sequence[Example]]:
    """Return a tokenizer and examples to count with; made up unless both are on this machine."""
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
    """Make an example of the assumed lengths, in words; see `_words`."""
    bounds = [reasoning * i // STEPS for i in range(STEPS + 1)]
    steps = tuple(" ".join("w" * (end - begin)) for begin, end in pairwise(bounds))
    beside = 5  # "The", "answer", "is", ":" and EOS
    return Example(
        "assumed", " ".join("w" * (QUESTION - 1)), steps, " ".join("w" * (ANSWER - beside))
    )


def _words() -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word or sign."""
    inner = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2}, "<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special)
