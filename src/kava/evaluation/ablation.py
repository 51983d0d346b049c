"""Test whether latents carry the answer: replace them, and answer the same questions again.

If the latents carry the answer, other latents remove it, and the latents of another question lead
to the answer to that question.
"""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kava.backbones import rope
from kava.data.answers import read_answer
from kava.data.tasks import Task
from kava.errors import KavaError
from kava.evaluation import paired, slices
from kava.evaluation.answers import (
    HEADLINE,
    RULES,
    note_on_unreadable_golds,
    percent,
    standard_error,
)
from kava.evaluation.interventions import (
    FEWER,
    INTERVENTIONS,
    InterventionInputs,
    Latents,
    Mean,
    left_out,
    partners,
    replace_latents,
)
from kava.evaluation.runner import batches
from kava.evaluation.slices import Slice
from kava.reasoning.answers import Answer
from kava.reasoning.reasoner import Reasoner
from kava.recipe import registry
from kava.system import links
from kava.system.environment import provenance
from kava.system.files import write_json, write_whole
from kava.types import Example

RESULT, PLOT = "ablation.json", "ablation.png"
BASELINE, SWAPPED = "as_they_are", "swapped"

Answers = dict[str, list[Answer]]


def check(reasoner: Reasoner) -> None:
    """Raise a KavaError if the method has no latents, or if they cannot be moved."""
    if not reasoner.method.uses_latents:
        names = registry.names("methods")
        able = [name for name in names if registry.find("methods", name).uses_latents]
        raise KavaError(
            f"ablate: method '{reasoner.recipe.method}' has no latents to change; give a run of "
            f"{', '.join(able[:-1])} or {able[-1]}",
            code="evaluation.no-latents",
            key=reasoner.recipe.method,
        )
    rope.check(reasoner.lm, "moving a latent's key to another position", "ablate needs it")


def ablate(
    reasoner: Reasoner,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    parts: Sequence[Slice] = (),
    sizes: Sequence[int] | None = None,
) -> Answers:
    """Answer every example under each intervention, for each slice, and with 0 to T iterations.

    An intervention that has no meaning for the model is skipped (`left_out`). Iterations apply to
    methods that have them, up to the recipe's T, which is `as_they_are`. Latents are exchanged and
    averaged between questions with as many latents.

    Args:
        seed: seed of all random draws.
        on_batch: called with the number of examples done.
        parts: slices of the cache that are exchanged on their own, see `slices`.
        sizes: from `count_latents`, which is called if they are not given.

    Returns:
        For each intervention, the answers in the order of the examples. Up to rounding, they depend
        neither on `batch_size` nor on one another.

    Raises:
        KavaError: if there are no latents, latents cannot be moved, or a question has no other with
            as many latents.
    """
    check(reasoner)
    sizes = count_latents(reasoner, examples, batch_size) if sizes is None else sizes
    for size, count in sorted(Counter(sizes).items()) or [(0, 0)]:
        if count < 2:
            alike = "" if len(examples) < 2 else f" with as many latents, {size},"
            raise KavaError(
                f"ablate: latents are swapped between questions, so at least two{alike} are "
                f"needed, not {count}; give more questions",
                code="evaluation.too-few-examples",
                key=str(size),
            )
    partner_of = partners(sizes, seed)
    found: dict[str, dict[int, Answer]] = {}
    training, done = reasoner.training, 0
    reasoner.eval()
    averages = {size: Mean() for size in sizes}
    for chosen in _batches_of_one_size(examples, batch_size, sizes):
        reasoning = reasoner.think([examples[i].question for i in chosen])
        averages[sizes[chosen[0]]].add(reasoner.lm, Latents.from_reasoning(reasoning))
    for chosen in _batches_of_one_size(examples, batch_size, sizes):
        partners_of = [examples[partner_of[i]].question for i in chosen]
        average = averages[sizes[chosen[0]]]
        for name, answers in _batch(
            reasoner, examples, chosen, partners_of, average, max_new_tokens, seed, parts
        ).items():
            found.setdefault(name, {}).update(zip(chosen, answers, strict=True))
        done += len(chosen)
        if on_batch:
            on_batch(done)
    reasoner.train(training)
    return {name: [by[i] for i in range(len(examples))] for name, by in found.items()}


def count_latents(
    reasoner: Reasoner, examples: Sequence[Example], batch_size: int
) -> Sequence[int]:
    """Return the number of latents of each example, which the model may choose itself."""
    if reasoner.method.fixed_size:
        return [reasoner.recipe.num_latents] * len(examples)
    training, found = reasoner.training, {}
    reasoner.eval()
    for chosen in batches(examples, batch_size):
        reasoning = reasoner.think([examples[i].question for i in chosen])
        found.update(zip(chosen, Latents.count(reasoning).tolist(), strict=True))
    reasoner.train(training)
    return [found[i] for i in range(len(examples))]


def _batches_of_one_size(
    examples: Sequence[Example], batch_size: int, sizes: Sequence[int]
) -> Iterator[list[int]]:
    """Yield batches of indices of examples with as many latents."""
    for size in sorted(set(sizes)):
        alike = [i for i, other in enumerate(sizes) if other == size]
        for chosen in batches([examples[i] for i in alike], batch_size):
            yield [alike[i] for i in chosen]


def _batch(
    reasoner: Reasoner,
    examples: Sequence[Example],
    chosen: list[int],
    partners_of: list[str],
    average: Mean,
    max_new_tokens: int,
    seed: int,
    parts: Sequence[Slice],
) -> Answers:
    """Compute all rows of the table for some of the examples.

    Args:
        chosen: indices of the examples.
        partners_of: the questions of their partners.
    """
    questions = [examples[i].question for i in chosen]
    reasoning = reasoner.think(questions)
    own = Latents.from_reasoning(reasoning)
    other = Latents.from_reasoning(reasoner.think(partners_of))
    averaged = average.at_positions_of(reasoner.lm, own)
    answers: Answers = {}
    for name, intervene in INTERVENTIONS.items():
        if name in left_out(reasoner):
            continue
        draws = [random.Random(f"{name}/{seed}/{i}") for i in chosen]
        pairs = intervene(InterventionInputs(reasoner.lm, own, other, averaged, draws))
        changed = replace_latents(reasoner, reasoning, own, pairs)
        answers[name] = reasoner.answer(changed, max_new_tokens)
    theirs = other.at_positions(reasoner.lm, own.positions)
    for name, put in slices.rows(parts, own.key_values, theirs, averaged).items():
        changed = replace_latents(reasoner, reasoning, own, put())
        answers[name] = reasoner.answer(changed, max_new_tokens)
    has_fewer = reasoner.method.iterates and FEWER not in left_out(reasoner)
    last = reasoner.recipe.num_iterations if has_fewer else -1
    for t in range(last + 1):
        if t == last:
            answers[iterations(t)] = answers[BASELINE]
            break
        # Use the same two steps as the row it is compared with: <eot> in a separate forward pass.
        early = reasoner.think(questions, num_iterations=t)
        latents = Latents.from_reasoning(early)
        early = replace_latents(reasoner, early, latents, latents.key_values)
        answers[iterations(t)] = reasoner.answer(early, max_new_tokens)
    return answers


def iterations(count: int) -> str:
    """Return the name of the table row with this number of iterations."""
    return f"iterations_{count}"


def measure(
    examples: Sequence[Example],
    answers: Answers,
    seed: int = 0,
    parts: Sequence[Slice] = (),
    layers: int = 0,
    sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Compute the table rows and chance levels from answers in the order of the examples.

    Returns:
        `rows`, each with `accuracy` in percent, its standard error and 95 % interval (Wilson);
        `difference` to the unchanged latents in percentage points, with its 95 % interval (paired
        bootstrap) and McNemar's exact p; `changed`, the percentage of questions whose answer text
        is different; `forward_passes`, as `kava eval` counts them. The row `swapped` also has
        `partner_accuracy`, the percentage of answers that are correct for the other question.
        `chance`: see `chance`. With `parts`, also `slices`: see `slices.measure_slices`.

    Args:
        sizes: the number of latents of each example; all alike if not given.
    """
    partner_of = partners(sizes or [0] * len(examples), seed)
    hits = {name: _correct_flags(examples, given) for name, given in answers.items()}
    rows = []
    for name, given in answers.items():
        row = _row(name, given, hits[name], answers[BASELINE], hits[BASELINE], seed)
        if name == SWAPPED:
            theirs = sum(_correct_flags([examples[i] for i in partner_of], given))
            row["partner_accuracy"] = percent(theirs, len(given))
            row["partner_accuracy_interval"] = _round_interval(paired.wilson(theirs, len(given)))
        rows.append(row)
    table = {"rows": rows, "chance": chance(examples)}
    if parts:
        table["slices"] = slices.measure_slices(parts, layers, answers, hits, partner_of)
    return table


def chance(examples: Sequence[Example]) -> dict[str, float]:
    """Compute the headline accuracy, in percent, of answering without reasoning.

    other_question: always give the correct answer to another question, drawn from all the others.
    most_frequent: always give the answer that is correct most often.
    """
    numbers = (read_answer(example.answer).value for example in examples)
    counts = Counter(number for number in numbers if number is not None).values()
    n = len(examples)
    alike = sum(count * (count - 1) for count in counts)
    return {
        "other_question": percent(alike, n * (n - 1)),
        "most_frequent": percent(max(counts, default=0), n),
    }


def _correct_flags(examples: Sequence[Example], answers: Sequence[Answer]) -> list[bool]:
    rule, pairs = RULES[HEADLINE], zip(examples, answers, strict=True)
    return [rule(answer.text, example.answer) for example, answer in pairs]


def _row(
    name: str,
    answers: Sequence[Answer],
    hits: list[bool],
    as_they_are: Sequence[Answer],
    as_they_are_hits: list[bool],
    seed: int,
) -> dict[str, Any]:
    n, right = len(hits), sum(hits)
    other = sum(a.text != b.text for a, b in zip(answers, as_they_are, strict=True))
    return {
        "name": name,
        "n": n,
        "accuracy": percent(right, n),
        "accuracy_se": standard_error(right, n),
        "accuracy_interval": _round_interval(paired.wilson(right, n)),
        "difference": round(paired.difference(hits, as_they_are_hits), 2),
        "difference_interval": _round_interval(
            paired.paired_bootstrap(hits, as_they_are_hits, seed)
        ),
        "mcnemar_p": float(f"{paired.mcnemar(hits, as_they_are_hits):.3g}"),
        "changed": percent(other, n),
        "forward_passes": round(sum(a.forward_passes for a in answers) / n, 3),
        "unfinished": sum(not a.finished for a in answers),
    }


def _round_interval(interval: tuple[float, float]) -> list[float]:
    return [round(end, 2) for end in interval]


# -- the run folder ------------------------------------------------------------------------------


def ablate_task(
    reasoner: Reasoner,
    task: Task,
    folder: Path,
    batch_size: int | None = None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
    parts: Sequence[str] = (),
) -> dict[str, Any]:
    """Run the ablation on a task, write the table and the predictions, and return the table.

    Args:
        parts: slices of the cache to exchange, see `slices.read_slice`; by default keys, values and
            each half of the layers.

    Raises:
        KavaError: see `ablate`; or if the folder contains the ablation of another task, or the seed
            is out of range.
    """
    paired.check_seed(seed)
    for place in (folder / PLOT, folder / RESULT):
        links.check(place)
    links.check_tree(folder / "predictions")
    _check_folder(folder, task.name)
    settings, recipe = reasoner.recipe.eval, reasoner.recipe
    batch_size = batch_size or settings.batch_size
    layers = len(reasoner.cache_shapes())
    chosen = [slices.read_slice(text, layers) for text in parts] or slices.usual_slices(layers)
    tokens = settings.max_new_tokens
    check(reasoner)
    sizes = count_latents(reasoner, task.examples, batch_size)
    answers = ablate(reasoner, task.examples, batch_size, tokens, seed, on_batch, chosen, sizes)
    table = {
        "method": recipe.method,
        "num_latents": recipe.num_latents,
        "num_iterations": recipe.num_iterations if reasoner.method.iterates else None,
        "task": task.name,
        "version": task.version,
        "split": task.split,
        "source": task.source,
        "rule": HEADLINE,
        "seed": seed,
        "batch_size": batch_size,
        **measure(task.examples, answers, seed, chosen, layers, sizes),
        "left_out": left_out(reasoner),
        "note": note_on_unreadable_golds(example.answer for example in task.examples),
        **provenance(),
    }
    _write_predictions(folder, task.examples, answers, partners(sizes, seed))
    write_json(folder / RESULT, table)
    return table


def _check_folder(folder: Path, task: str) -> None:
    file = folder / RESULT
    if not file.is_file():
        return
    try:
        saved_task = json.loads(file.read_text(encoding="utf-8"))["task"]
    except (ValueError, KeyError, TypeError):
        raise KavaError(
            f"{file}: not the result of an ablation; choose another folder with -o",
            code="evaluation.not-a-result",
            key=str(file),
        ) from None
    if saved_task != task:
        raise KavaError(
            f"{file} is the result of task '{saved_task}'; choose another folder for '{task}' "
            "with -o",
            code="evaluation.other-task",
            key=saved_task,
        )


def _write_predictions(
    folder: Path, examples: Sequence[Example], answers: Answers, partner_of: Sequence[int]
) -> None:
    """Write one file in `predictions/ablation` per row of the table, one JSON line per example."""
    for name, given in answers.items():
        lines, hits = [], _correct_flags(examples, given)
        for i, (example, answer) in enumerate(zip(examples, given, strict=True)):
            record: dict[str, Any] = {"id": example.id, "prediction": answer.text}
            if name == SWAPPED:
                record["partner"] = examples[partner_of[i]].id
            record["correct"] = {HEADLINE: hits[i]}
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        write_whole(folder / "predictions" / "ablation" / f"{name}.jsonl", "".join(lines), folder)
