"""Checkpoints of kava in EleutherAI's lm-evaluation-harness (the extra `eval`).

    python -m kava.lm_eval --model kava --model_args checkpoint=FOLDER --tasks kava_svamp

That is the harness's own command line, `lm_eval`, to which our model and our tasks were introduced:
its version 0.4.13 knows no models but those of its own package and of modules that were imported.
Later ones read the entry point `lm_eval.models` of an installed package, which ours declares; there
`lm_eval --model kava --include_path FOLDER` does the same, with the folder `TASKS`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kava.errors import KavaError, install, unknown

TASKS = Path(__file__).with_name("tasks")


def require() -> None:
    """Raise a KavaError where the harness is not installed."""
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
    """What `lm_eval.simple_evaluate` returns for a checkpoint.

    Args:
        tasks: of the harness, or ours: kava_gsm8k, kava_svamp, kava_gsm_hard, kava_multiarith.
        files: local copies of the rows of our tasks, as `{"svamp": FILE}`; else the Hub is asked.
        limit: the first rows of each task only.
        arguments: of `KavaLM`, such as `batch_size`.

    Raises:
        KavaError: the harness is not installed, a file of no task of ours, or what `KavaLM` and
            our tasks raise.
    """
    require()
    import lm_eval
    from lm_eval.tasks import TaskManager

    from kava.lm_eval.model import KavaLM

    ours = {file.stem for file in TASKS.glob("kava_*.yaml")}
    known = [name.removeprefix("kava_") for name in ours]
    for name in files or {}:
        if name not in known:
            raise unknown("task in files:", name, known, code="lm_eval.unknown-task")
    metadata = {f"{name}_file": str(file) for name, file in (files or {}).items()}
    # Its own tasks are read through only if one is asked for: some seconds.
    manager = TaskManager(
        include_path=str(TASKS), include_defaults=not ours.issuperset(tasks), metadata=metadata
    )
    model = KavaLM(str(checkpoint), **arguments)
    return lm_eval.simple_evaluate(model=model, tasks=tasks, limit=limit, task_manager=manager)
