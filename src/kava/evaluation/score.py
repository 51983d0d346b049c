"""Score a reasoner on a task, and save the result in a run folder."""

from pathlib import Path
from typing import Any, Literal

from kava.data import note_on_related, rows_hash
from kava.data.tasks import Task
from kava.evaluation.runner import EvaluationResult, evaluate
from kava.reasoning import checkpoint
from kava.reasoning.reasoner import Reasoner
from kava.runs.folder import check_scores, read_result, score_lock
from kava.runs.layout import RESULT
from kava.system import distributed
from kava.system.environment import provenance
from kava.system.files import write_json


def score_run(
    reasoner: Reasoner,
    task: Task,
    run: Path,
    batch_size: int | None = None,
    timed_alone: int = 50,
    on_batch: Any = None,
    num_iterations: int | Literal["auto"] | None = None,
) -> EvaluationResult:
    """Evaluate a reasoner on a task; write predictions and scores to the run folder.

    Raises:
        KavaError: see `check_scores` and `evaluate`.
    """
    distributed.on_main_rank(lambda: check_scores(run, task.name))
    settings = reasoner.recipe.eval
    result = evaluate(
        reasoner,
        task.examples,
        batch_size or settings.batch_size,
        settings.max_new_tokens,
        num_iterations,
        timed_alone=timed_alone,
        on_batch=on_batch,
    )

    related = note_on_related(reasoner.recipe.data.train, task.name)

    def write() -> None:
        score = {
            "version": task.version,
            "split": task.split,
            "source": task.source,
            "sha256": rows_hash(task.examples),
            **({} if num_iterations is None else {"num_iterations": num_iterations}),
            "merged": reasoner.merged,
            **({"note": related} if related else {}),
            **({"model": reasoner.source} if reasoner.source else {}),
            **result.summary,
            **provenance(),
        }
        result.write_predictions(run / "predictions" / f"{task.name}.jsonl", run)
        with score_lock(run):
            written = read_result(run) or {"method": reasoner.recipe.method, "scores": {}}
            written.setdefault("scores", {})[task.name] = score
            write_json(run / RESULT, written)
            if (run / "checkpoint" / "kava.json").is_file():
                checkpoint.add_results(run / "checkpoint", written)

    distributed.on_main_rank(write)
    return result
