"""Estimate the cost of a training run without training: steps and token-forwards.

A token-forward is one column of one example that passes forward through the backbone, including
padding (which costs the same as a token). A latent counts once per forward pass. They are counted
rather than derived. The recipe's own method runs on a tiny random backbone of the recipe's family,
on examples as long as those of the data, and a hook on the backbone counts its inputs. Validation
is not included.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from kava.backbones import loading, structure
from kava.backbones.tiny import tiny_backbone
from kava.backbones.tokenizer import word_tokenizer
from kava.data import data_sets, load_examples
from kava.errors import KavaError
from kava.reasoning import batching, checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry
from kava.recipe.schema import Data, Recipe, Train
from kava.sweeps import lengths
from kava.system import hub
from kava.training.arguments import check_schedule, rows_at_once, stage_begins
from kava.training.sampler import EpochOrder
from kava.training.smoke import family
from kava.types import Example

SAMPLE = 1024  # examples that are counted, drawn at random
SAMPLED_BATCHES = 32  # approximate number of micro-batches counted, if a method has stages

# Assumed if the examples or the tokenizer are not on this machine: questions and chains of thought
# as long as those of GSM8k-Aug (`kava.sweeps.lengths`), an answer of 8 tokens with its prompt and
# EOS, and 3 steps (ours; the counted examples have 3.0). Sentences are assumed to be twice as long
# as equations (in GSM8K's training set, 64 words and signs compared with 31).
ANSWER, STEPS = 8, 3
SENTENCES = 2

Batch = dict[str, Any]


@dataclass(frozen=True)
class Cost:
    """The cost of one training run. None means that a value could not be determined.

    notes: why it could not be determined, and what was assumed.
    error: why the training would not begin; empty if it would.
    """

    steps: int | None
    token_forwards: int | None
    notes: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True)
class TrainingRows:
    """The training examples of a recipe, or only their number, if known, when they are not here."""

    examples: Sequence[Example] | None
    count: int | None
    why_not: str = ""


@dataclass
class Estimator:
    """Estimates the cost of recipes, doing shared work once. It downloads nothing."""

    _rows: dict[str, TrainingRows] = field(default_factory=dict)
    _costs: dict[str, Cost] = field(default_factory=dict)

    def cost(self, recipe: Recipe, processes: int = 1) -> Cost:
        """Estimate the cost of training by `recipe`; the seed makes no difference.

        Args:
            processes: number of processes that share a batch, and so pad its parts separately.
        """
        key = repr((recipe.model_copy(update={"seed": 0}), processes))
        if key not in self._costs:
            with hub.offline_mode():
                self._costs[key] = _cost(recipe, self.rows(recipe.data), processes)
        return self._costs[key]

    def rows(self, data: Data) -> TrainingRows:
        """Return the training examples, which are read once."""
        key = repr((data.train, data.train_rows, data.options))
        if key not in self._rows:
            self._rows[key] = _read(data)
        return self._rows[key]


def _cost(recipe: Recipe, rows: TrainingRows, processes: int) -> Cost:
    notes: list[str] = []
    train = recipe.train
    steps = train.steps if rows.count is None else train.total_steps(rows.count)
    if steps is None:
        notes.append(f"steps not known: {rows.why_not}")
    tokenizer, examples = text(recipe, rows, notes)
    forwards, refusal = None, ""
    try:
        with tiny_reasoner(recipe, tokenizer) as reasoner:
            batches = sample(reasoner, examples, rows_at_once(train, processes))
            if steps is not None:
                forwards = count(reasoner, batches, steps, rows.count or len(examples))
            if rows.count:
                known = batches if examples is rows.examples else []
                refusal = _start_problem(reasoner, known, rows.count)
    except KavaError as error:
        notes.append(f"not counted: {error}")
    return Cost(steps, forwards, tuple(notes), refusal)


def _start_problem(reasoner: Reasoner, batches: Sequence[Batch], rows: int) -> str:
    """Return the error with which the training would fail at its start, or an empty text.

    The longest chain of thought of all examples is at least as long as that of a sample.
    """
    longest = max((int(batch["steps_mask"].sum(1).max()) for batch in batches), default=0)
    try:
        check_schedule(reasoner, longest, rows)
    except KavaError as error:
        return str(error)
    return ""


# -- steps and token-forwards --------------------------------------------------------------------


def rows_seen(steps: int, rows: int, train: Train) -> int:
    """Return the number of examples in `steps` batches; an epoch's last batch may be smaller."""
    epochs, rest = divmod(steps, train.steps_per_epoch(rows))
    return epochs * rows + min(rest * train.batch_size, rows)


def count(reasoner: Reasoner, batches: Sequence[Batch], steps: int, rows: int) -> int:
    """Count the token-forwards of a training run of `steps` steps, by scaling up a sample.

    A method with stages is counted stage by stage, each weighted by the number of its examples.
    """
    train = reasoner.recipe.train
    spans = list(pairwise([*stage_begins(reasoner, steps, rows), steps]))
    each = len(batches) if len(spans) == 1 else max(1, SAMPLED_BATCHES // len(spans))
    total = 0.0
    for i, (begin, end) in enumerate(spans):
        chosen = [batches[(i + j) % len(batches)] for j in range(min(each, len(batches)))]
        tokens = token_forwards(reasoner, chosen, begin / train.steps_per_epoch(rows))
        rows_in_part = rows_seen(end, rows, train) - rows_seen(begin, rows, train)
        total += rows_in_part * tokens / sum(batch["question"].shape[0] for batch in chosen)
    return round(total)


@torch.no_grad()
def token_forwards(reasoner: Reasoner, batches: Sequence[Batch], epoch: float) -> int:
    """Compute the loss of each batch at a point of the training; count the backbone's inputs."""
    columns: list[int] = []

    def count_inputs(module: nn.Module, args: tuple, inputs: Batch) -> None:
        columns.append(inputs["inputs_embeds"].shape[:2].numel())

    hook = reasoner.lm.base_model.register_forward_pre_hook(count_inputs, with_kwargs=True)
    try:
        for batch in batches:
            staged = reasoner.apply_stage(batch, epoch)
            reasoner(counts=reasoner.method.counts(staged), **staged)
    finally:
        hook.remove()
    return sum(columns)


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
    """Draw micro-batches of examples as a training does, with ids mapped to those of the model.

    With `train.group_by_length`, the sample is one pool of the training, which has more examples;
    so slightly more pads are counted than there are.

    Args:
        size: size of a micro-batch; by default that of the recipe.
    """
    drawn = random.Random(0).sample(list(examples), min(SAMPLE, len(examples)))
    rows, train = reasoner.encoder.rows(drawn), reasoner.recipe.train
    size = size or train.micro_batch_size or train.batch_size
    vocabulary_size = structure.table(reasoner.lm).weight.shape[0]
    tokens = ("question", "steps", "answer", "teacher_ids", "answer_ids")
    if train.group_by_length:
        order = EpochOrder(len(rows), 0, 1, [row.columns for row in rows], train.batch_size)
        rows = [rows[index] for index in order]
    batches = [batching.collate(rows[at : at + size], pad_id=0) for at in range(0, len(rows), size)]
    return [
        {**batch, **{name: batch[name] % vocabulary_size for name in tokens}} for batch in batches
    ]


# -- rows and their lengths ----------------------------------------------------------------------


def _read(data: Data) -> TrainingRows:
    try:
        examples = load_examples(data.train, "train", limit=data.train_rows, options=data.options)
        return TrainingRows(examples, len(examples))
    except KavaError as error:
        return TrainingRows(None, _published_rows(data), str(error))


def _published_rows(data: Data) -> int | None:
    """Return the number of examples of a data set of this package that is not on this machine."""
    if data.train not in data_sets():
        return None
    rows = getattr(registry.module("data", data.train), "ROWS", {}).get("train")
    return min(rows, data.train_rows or rows) if rows else None


def text(recipe: Recipe, rows: TrainingRows, notes: list[str]) -> tuple[Any, Sequence[Example]]:
    """Return a tokenizer and examples for counting; assumed ones if one is not local."""
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
    factor = SENTENCES if sentences else 1
    drawn = [(q, factor * r) for q, r in islice(lengths.draw(0), SAMPLE)]
    dropped = ", the last of which is dropped" if recipe.drop_last_step else ""
    number = f"{rows.count:,} rows" if rows.count else "rows"
    question, reasoning = (round(sum(part) / len(drawn)) for part in zip(*drawn, strict=True))
    notes.append(
        f"{lacking} not on this machine; assumed: {number} as long as those of GSM8k-Aug, of about "
        f"question {question}, reasoning {reasoning} in {STEPS} steps{dropped}, answer {ANSWER} "
        "tokens"
    )
    return word_tokenizer(()), [_assumed_example(*one) for one in drawn]


def _assumed_example(question: int, reasoning: int) -> Example:
    """Make an example of these lengths, in words; the question's has BOS."""
    bounds = [reasoning * i // STEPS for i in range(STEPS + 1)]
    steps = tuple(" ".join("w" * (end - begin)) for begin, end in pairwise(bounds) if end > begin)
    beside = 5  # "The", "answer", "is", ":" and EOS
    return Example(
        "assumed", " ".join("w" * (question - 1)), steps, " ".join("w" * (ANSWER - beside))
    )
