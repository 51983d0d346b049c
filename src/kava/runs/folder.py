"""Create, check and lock a run folder, and read what it contains.

recipe.yaml      resolved recipe         metrics.jsonl   every logged step
checkpoint/      the trained reasoner    result.json     what was measured, and on what data
checkpoints/     to resume from          predictions/    one JSONL file per task
begun.json       its data and backbone, compared when it is resumed; deleted when it is done
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from kava.backbones import loading
from kava.errors import KavaError
from kava.reasoning.resolve import load_resolved
from kava.recipe import schema
from kava.recipe.load import load_recipe
from kava.runs.layout import METRICS, RECIPE, RESULT
from kava.runs.metrics import read_records
from kava.runs.resume import has_checkpoint
from kava.system import distributed, links, lock
from kava.system.files import write_json, write_whole

BEGIN_FILE, LOCK = "begun.json", "scores.lock"


@contextmanager
def create_or_resume(
    run: Path, recipe: schema.Section, resume: bool, inputs: dict[str, Any]
) -> Iterator[None]:
    """Create the run folder, or check that the run to resume has the same recipe and inputs.

    If training inside the block fails before it logs anything, the files created here are removed.

    Args:
        inputs: the entries `data` and `backbone` of the result to be written.

    Raises:
        KavaError: if the folder contains another run or other files, or a symbolic link where
            training writes; if `resume` is set and the recipe or the inputs differ. On all
            processes.
    """
    made = [path for path in (run / RECIPE, run / BEGIN_FILE, run) if not path.exists()]
    distributed.on_main_rank(lambda: _prepare(run, recipe, resume, inputs))
    try:
        yield
    except BaseException:
        if distributed.is_main() and not resume and not holds_run(run):
            for path in made:
                with suppress(OSError):  # the folder contains other files by now
                    path.rmdir() if path == run else path.unlink()
        raise


def _prepare(run: Path, resolved: schema.Section, resume: bool, inputs: dict[str, Any]) -> None:
    links.check_named(run, _WRITTEN)
    if resume:
        if not (run / RECIPE).is_file():
            raise KavaError(
                f"{run}: nothing to resume here (no recipe.yaml)",
                code="runs.nothing-to-resume",
                key=str(run),
            )
        if different := differences(run, resolved):
            raise KavaError(
                f"{run}: its recipe.yaml differs ({different}); not resumed",
                code="runs.other-recipe",
                key=str(run),
            )
        if is_finished(run):
            raise KavaError(
                f"{run}: is finished; nothing to resume", code="runs.finished", key=str(run)
            )
        check_inputs(run, inputs)
        return
    if holds_run(run):
        way = (
            "choose another --output"
            if is_finished(run)
            else "pass --resume, or choose another --output"
        )
        raise KavaError(f"{run}: already holds a run; {way}", code="runs.holds-run", key=str(run))
    check_free(run, resolved)
    links.make_folder(run)
    if not (run / RECIPE).exists():
        write_whole(run / RECIPE, schema.dump(resolved))
    write_json(run / BEGIN_FILE, inputs)


def holds_run(run: Path) -> bool:
    """Whether a folder contains a run, and not only the files of a start that failed at once."""
    return any(next(run.glob(name), None) for name in (METRICS, RESULT, "checkpoints/*"))


def is_finished(run: Path) -> bool:
    """Whether a run was trained to its end, and the files for resuming it are removed."""
    return (run / RESULT).is_file() and not has_checkpoint(run)


def check_free(run: Path, recipe: schema.Section) -> None:
    """Raise an error if a folder without a run has files that a run would overwrite.

    A recipe that an interrupted start of the same run left behind is ignored.

    Raises:
        KavaError: with the name of the file.
    """
    for name in _TAKEN:
        if found := next(run.glob(name), None):
            raise KavaError(
                f"{found}: exists and does not belong to a run, and training would overwrite it; "
                "choose another --output",
                code="runs.would-overwrite",
                key=str(found),
            )
    if (run / RECIPE).exists() and not _is_left_behind(run, recipe):
        raise KavaError(
            f"{run / RECIPE}: already exists and training would overwrite it; choose another "
            "--output, or delete the file if you do not need it",
            code="runs.would-overwrite",
            key=str(run / RECIPE),
        )


#: Files of checkpoints and backbones, and files that are written next to them.
_TAKEN = (
    "kava.json", "config.json", "tokenizer.json", "*.safetensors", "checkpoint", "predictions",
    "sample.jsonl",
)  # fmt: skip


#: Everything that `kava train`, `kava pretrain` or `kava eval` writes directly into the folder.
_WRITTEN = (
    METRICS, RECIPE, LOCK, "sample.jsonl", "predictions", "checkpoint", "checkpoint.partial",
    "checkpoints", "backbone", "error.log", "*.json", "*.safetensors", "*.jinja",
    "*.model", "vocab.*", "merges.txt",
)  # fmt: skip


def check_scores(run: Path, task: str) -> None:
    """Raise an error if something that `score_run` writes to a folder would go through a link.

    Raises:
        KavaError: with the symbolic link.
    """
    for name in (
        RESULT, LOCK, f"predictions/{task}.jsonl", "checkpoint/kava.json", "checkpoint/README.md",
    ):  # fmt: skip
        links.check(run / name, run)


def _is_left_behind(run: Path, resolved: schema.Section) -> bool:
    """Whether the recipe in a folder was written by kava for this run; `resources` may differ."""
    try:
        saved = _saved_recipe(run, type(resolved))
        text = (run / RECIPE).read_text(encoding="utf-8")
        return text == schema.dump(saved) and not differences(run, resolved)
    except (KavaError, ValueError):
        return False


def _saved_recipe(run: Path, kind: type[schema.Section]) -> Any:
    """Read the recipe in a run folder, of a training run or of a backbone."""
    file = run / RECIPE
    if kind is schema.Recipe:
        return load_resolved(file, saved=True)
    return load_recipe(file, kind=kind, saved=True)


def check_inputs(run: Path, inputs: dict[str, Any]) -> None:
    """Raise an error if a run would be resumed with other examples or another backbone.

    A run that began before kava recorded these cannot be compared.

    Raises:
        KavaError: says what differs, what it was and what it is now.
    """
    file = run / BEGIN_FILE
    if not file.is_file():
        return
    try:
        began = json.loads(file.read_text(encoding="utf-8"))
        rows = {part: (one["rows"], one["sha256"]) for part, one in began["data"].items()}
        backbone = began.get("backbone")
        changed = backbone and loading.describe_difference(backbone, inputs["backbone"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise KavaError(
            f"{file}: damaged; start again with another --output",
            code="runs.damaged",
            key=str(file),
        ) from None
    for part, (count, digest) in rows.items():
        now = inputs["data"].get(part, {"rows": 0, "sha256": ""})
        if (now["rows"], now["sha256"]) != (count, digest):
            raise KavaError(
                f"{run}: the {part} data had {count} rows with SHA-256 {digest[:12]}, and now has "
                f"{now['rows']} rows with {now['sha256'][:12]}; not resumed",
                code="runs.other-rows",
                key=part,
            )
    if changed:
        raise KavaError(
            f"{run}: {inputs['backbone']['name']}: its {changed}; not resumed",
            code="runs.other-backbone",
            key=inputs["backbone"]["name"],
        )


def differences(run: Path, recipe: schema.Section) -> str:
    """Describe the keys in which the recipe in a run folder differs from another; empty if none.

    The saved recipe is read by the rules of this version, so a key that is newer than the run has
    its default. If neither recipe has an adapter, the keys of adapters are ignored. The keys of a
    job (`resources`) are always ignored.

    Raises:
        KavaError: if there is no recipe, or it cannot be read.
    """
    saved = _saved_recipe(run, type(recipe))
    saved_settings, given = (
        schema.flatten(one.model_dump(by_alias=True)) for one in (saved, recipe)
    )
    keys = [key for key in {**given, **saved_settings} if given.get(key) != saved_settings.get(key)]
    keys = [key for key in keys if not key.startswith("resources.")]
    if given.get("adapter") == saved_settings.get("adapter") == "full":
        keys = [key for key in keys if not key.startswith("lora.")]
    lines = [
        f"{key}: {saved_settings.get(key)!r} in the run, {given.get(key)!r} given"
        for key in keys[:3]
    ]
    return "; ".join(lines + [f"{len(keys) - 3} more"] * (len(keys) > 3))


def back_up(run: Path, console: Console) -> None:
    """Rename a folder that already exists, to make room for a new run.

    Raises:
        KavaError: if it is this process's working directory or above it, so that it cannot be
            moved.
    """
    if run.exists():
        if Path.cwd().is_relative_to(run.resolve()):
            raise KavaError(
                f"{run}: is the current folder or contains it, so it cannot be renamed; choose "
                "another --output",
                code="runs.inside",
                key=str(run),
            )
        names = (run.with_name(f"{run.name}-{number}") for number in range(1, 10_000))
        aside = next(path for path in names if not path.exists())
        run.rename(aside)
        console.print(f"the earlier contents of {run} are now in {aside}", style="dim")


def clear(run: Path) -> None:
    """Remove the files that are needed only to resume.

    Call it last: until then, the run can be resumed.
    """
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / BEGIN_FILE).unlink(missing_ok=True)


@contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """Lock a run folder for this process, whatever path other processes use for it.

    Raises:
        KavaError: if another process uses it; or if it is the root of the file system, which has no
            parent folder for the lock.
    """
    folder = run.resolve()
    if not folder.name:
        raise KavaError(
            f"{run}: cannot be used as a run folder; choose another --output",
            code="runs.not-a-folder",
            key=str(run),
        )
    file = folder.with_name(f"{folder.name}.training")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire_for_all(file))
        except lock.LockHeld as held:
            raise KavaError(f"{run}: in use: {held}", code="runs.in-use", key=str(run)) from None
        yield


@contextmanager
def score_lock(run: Path) -> Iterator[None]:
    """Keep other processes from writing scores to a run folder; each waits for its turn.

    Raises:
        KavaError: if another process holds the lock for longer than writing takes.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(run / LOCK, _PATIENCE))
        except lock.LockHeld as held:
            raise KavaError(
                f"{run}: its scores are in use: {held}", code="runs.scores-in-use", key=str(run)
            ) from None
        yield


_PATIENCE = 30.0  # seconds; writing takes about 0.01


def read_result(run: Path) -> dict[str, Any] | None:
    """Read `result.json` of a run folder; return None if there is none.

    Raises:
        KavaError: if it is not a JSON object.
    """
    file = run / RESULT
    if not file.is_file():
        return None
    result = read_result_json(file)
    if not isinstance(result, dict) or not isinstance(result.get("scores", {}), dict):
        raise KavaError(
            f"{file}: not the result of a run; move it to another folder",
            code="runs.not-a-result",
            key=str(file),
        )
    return result


def read_result_json(file: Path) -> Any:
    """Read a `result.json`, which may not be kava's: other programs use that name too.

    Raises:
        KavaError: if it is not JSON.
    """
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise KavaError(
            f"{file}: not valid JSON: {error}", code="runs.bad-json", key=str(file)
        ) from None


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Read `metrics.jsonl` of a run folder.

    Raises:
        KavaError: if a line is not a record.
    """
    return read_records(run / METRICS)
