"""Evaluate checkpoints of kava with EleutherAI's lm-evaluation-harness (the extra `eval`).

    python -m kava.lm_eval --model kava --model_args checkpoint=FOLDER --tasks kava_svamp

This is the harness's own command line, `lm_eval`, with kava's model and tasks registered: version
0.4.13 of the harness only knows models of its own package and of modules that were imported. Later
versions read the entry point `lm_eval.models` of installed packages, which kava declares; with
them, `lm_eval --model kava --include_path FOLDER` does the same, with the folder `TASKS`.
"""

from pathlib import Path
from typing import Any

from kava.errors import KavaError, install, unknown_name

TASKS = Path(__file__).with_name("tasks")


def require() -> None:
    """Raise a KavaError if the harness is not installed."""
    from importlib.util import find_spec

    if find_spec("lm_eval") is None:
        raise KavaError(
            f"lm-evaluation-harness is not installed; pip install lm-eval, or {install('eval')}",
            code="lm_eval.not-installed",
            key="lm_eval",
        )


def evaluate(
    checkpoint: str | Path,
    tasks: list[str],
    files: dict[str, str | Path] | None = None,
    limit: int | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Return the results of `lm_eval.simple_evaluate` for a checkpoint.

    Args:
        tasks: tasks of the harness, or of kava: kava_gsm8k, kava_svamp, kava_gsm_hard,
            kava_multiarith.
        files: local copies of the examples of kava's tasks, such as `{"svamp": FILE}`; other tasks
            are downloaded from the Hub.
        limit: use only the first examples of each task.
        arguments: arguments of `KavaLM`, such as `batch_size`.

    Raises:
        KavaError: the harness is not installed, a file is given for a task that is not kava's, or
            what `KavaLM` and kava's tasks raise.
    """
    require()
    import lm_eval
    from lm_eval.tasks import TaskManager

    from kava.lm_eval.model import KavaLM

    ours = {file.stem for file in TASKS.glob("kava_*.yaml")}
    known = [name.removeprefix("kava_") for name in ours]
    for name in files or {}:
        if name not in known:
            raise unknown_name("task in files:", name, known, code="lm_eval.unknown-task")
    metadata = {f"{name}_file": str(file) for name, file in (files or {}).items()}
    # Reading the harness's own tasks takes some seconds, so they are included only if requested.
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=not ours.issuperset(tasks), metadata=metadata
    )
    model = KavaLM(str(checkpoint), **arguments)
    return lm_eval.simple_evaluate(model=model, tasks=tasks, limit=limit, task_manager=manager)
