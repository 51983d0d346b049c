"""Evaluate a reasoner on examples: greedy, batched generation, scores and timings."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from kava.evaluation import symbolic
from kava.evaluation.answers import (
    HEADLINE,
    RULES,
    accuracy_by_rule,
    note_on_markers,
    note_on_unreadable_golds,
    percent,
    score,
    standard_error,
)
from kava.reasoning import context_window
from kava.reasoning.answers import Answer
from kava.reasoning.reasoner import Reasoner
from kava.system import distributed, signals
from kava.system.files import write_whole
from kava.system.memory import peak_memory, synchronise
from kava.types import Example


@dataclass(frozen=True)
class EvaluationResult:
    """The result of an evaluation.

    predictions: one record per example, in the order of the examples.
    summary: accuracies, counts, latencies and memory.
    """

    predictions: list[dict[str, Any]]
    summary: dict[str, Any]

    @property
    def n(self) -> int:
        """Return the number of examples."""
        return len(self.predictions)

    def notes(self) -> list[str]:
        """Return what the headline cannot read among right answers and predictions."""
        texts, golds, correct = (
            [record[name] for record in self.predictions]
            for name in ("prediction", "answer", "correct")
        )
        notes = note_on_unreadable_golds(golds), note_on_markers(texts, golds, correct)
        return [note for note in notes if note]

    def write_predictions(self, file: Path, below: Path | None = None) -> None:
        """Write one JSON line per example, atomically. `below`: see `write_whole`."""
        lines = (json.dumps(record, ensure_ascii=False) for record in self.predictions)
        write_whole(file, "".join(line + "\n" for line in lines), below)


def evaluate(
    reasoner: Reasoner,
    examples: Sequence[Example],
    batch_size: int,
    max_new_tokens: int,
    num_iterations: int | Literal["auto"] | None = None,
    timed_alone: int = 0,
    on_batch: Callable[[int], None] | None = None,
    rules: Sequence[str] = tuple(RULES),
) -> EvaluationResult:
    """Answer every example and score it under every rule, or under `rules`.

    Several processes share the batches, and all return the same evaluation. Times are measured
    until all processes are done; memory and latency are those of the main process.

    Args:
        timed_alone: number of questions to time again, one at a time (latency).
        on_batch: called with the number of examples done.
        rules: rules to score by, which must include the headline rule.

    Raises:
        KavaError: before the first answer, if a question is too long for the backbone; names its
            row.
        Preempted: if a stop was requested (`kava.system.signals`).
    """
    check_room(reasoner, examples)
    training = reasoner.training
    reasoner.eval()
    answers: dict[int, Answer] = {}
    begin = time.perf_counter()
    with peak_memory(reasoner.device) as peak:
        for chosen in distributed.split_over_ranks(batches(examples, batch_size)):
            signals.stop_if_requested()
            if chosen is None:
                continue
            texts = [examples[i].question for i in chosen]
            batch = reasoner.answer(reasoner.think(texts, num_iterations), max_new_tokens)
            answers.update(zip(chosen, batch, strict=True))
            if on_batch:
                on_batch(min(len(answers) * distributed.world_size(), len(examples)))
        for others in distributed.gather(answers):
            answers.update(others)
    seconds = time.perf_counter() - begin
    with symbolic.count_timeouts() as judged:
        predictions = [_record(e, answers[i], rules) for i, e in enumerate(examples)]
    summary = summarise(predictions)
    if judged.timed_out:
        summary["math_verify"] = {**asdict(judged), "note": judged.note()}
    summary["batch_size"] = batch_size
    summary["ms_per_question_in_batch"] = round(1000 * seconds / max(len(examples), 1), 3)
    tokens = sum(answer.generated_tokens for answer in answers.values())
    summary["tokens_per_second"] = round(tokens / seconds, 1) if seconds else None
    summary["peak_memory"] = asdict(peak)
    if timed_alone:
        signals.stop_if_requested()
        questions = [e.question for e in examples[:timed_alone]]
        timed = partial(time_alone, reasoner, questions, max_new_tokens, num_iterations)
        summary["ms_per_question"] = distributed.on_main_rank(timed)
        summary["ms_per_question_n"] = len(questions)
    reasoner.train(training)
    return EvaluationResult(predictions, summary)


def check_room(reasoner: Reasoner, examples: Sequence[Example]) -> None:
    """Raise a KavaError if a question is too long for the positions of the backbone."""
    encoded = reasoner.encoder.questions([e.question for e in examples])
    context_window.check(reasoner, encoded, [f"the question of row '{e.id}'" for e in examples])


def batches(examples: Sequence[Example], batch_size: int) -> Iterator[list[int]]:
    """Yield the indices of examples to answer together, batching questions of similar length.

    Batching changes the time, not the answers.
    """
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].question))
    for at in range(0, len(order), batch_size):
        yield order[at : at + batch_size]


def time_alone(
    reasoner: Reasoner,
    questions: list[str],
    max_new_tokens: int,
    num_iterations: int | Literal["auto"] | None = None,
) -> float:
    """Return the median milliseconds from question to answer at batch size 1, after a warm-up."""
    times = []
    for question in [questions[0], *questions]:
        synchronise(reasoner.device)
        begin = time.perf_counter()
        reasoner.answer(reasoner.think([question], num_iterations), max_new_tokens)
        synchronise(reasoner.device)
        times.append(1000 * (time.perf_counter() - begin))
    return round(median(times[1:]), 3)


def summarise(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute accuracies in percent with standard errors, and mean counts."""
    n = len(predictions)
    hits = sum(p["correct"][HEADLINE] for p in predictions)
    summary: dict[str, Any] = {
        "n": n,
        "rule": HEADLINE,
        "accuracy": percent(hits, n),
        "accuracy_se": standard_error(hits, n),
        "accuracy_by_rule": accuracy_by_rule([p["correct"] for p in predictions]),
        "accuracy_by_steps": {},
        "unfinished": sum(not p["finished"] for p in predictions),
    }
    for steps in sorted({p["num_steps"] for p in predictions}):
        group = [p["correct"][HEADLINE] for p in predictions if p["num_steps"] == steps]
        summary["accuracy_by_steps"][str(steps)] = [percent(sum(group), len(group)), len(group)]
    for key in ("forward_passes", "prefill_passes", "generated_tokens"):
        summary[key] = round(sum(p[key] for p in predictions) / max(n, 1), 3)
    return summary


def _record(example: Example, answer: Answer, rules: Sequence[str]) -> dict[str, Any]:
    return {
        "id": example.id,
        "question": example.question,
        "answer": example.answer,
        "num_steps": len(example.steps),
        "prediction": answer.text,
        "correct": score(answer.text, example.answer, rules),
        "forward_passes": answer.forward_passes,
        "prefill_passes": answer.prefill_passes,
        "generated_tokens": answer.generated_tokens,
        "finished": answer.finished,
    }
