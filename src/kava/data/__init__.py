"""Load examples from a data set of this package, a local file, or the Hugging Face Hub.

To add a data set, add one file to this folder. The file name is the name of the data set. The
file defines `load(split, limit, **options) -> list[Example]` or, if examples are generated,
`generate(split, count, **options) -> list[Example]`.
"""

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from kava.data import files, rows, shards
from kava.errors import KavaError, first_line, unknown_name
from kava.recipe import registry
from kava.system import assets, hub
from kava.types import Example

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# A Hub name may contain a dot (`v1.5`), so only known file extensions count as such.
_FILE_ENDINGS = {*files.FORMATS, ".gz", ".zip", ".xlsx", ".yaml"}


def load_examples(
    source: str,
    split: str = "train",
    *,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> list[Example]:
    """Load the examples of one split, in order; no example is left out.

    Args:
        source: a data set of this package (`gsm8k_aug`), a file or several
            (`kava.data.files.read_rows`), or a Hub data set (`owner/name`). If several match, the
            first in this order is used.
        split: `train`, `validation` or `test`; ignored for a file and for a folder without splits.
        limit: load only the first `limit` examples; for generated data, the number to generate.
        options: keyword arguments of the data set. A file and a Hub data set take `question`,
            `answer` and `steps`, the names of the fields if they are not the usual ones, and
            `annotations` (`kava.data.rows.Columns`); a file also takes `field`
            (`kava.data.files.read_rows`), and a Hub data set `config`.

    Raises:
        KavaError: if the source, an option or the split is unknown; if the file or the Hub cannot
            be read; if a row is invalid (names file, line and field); if an id is repeated; if
            there are no rows; or if `limit` is below 1.
    """
    if limit is not None and limit < 1:
        raise KavaError(
            f"{source}: limit must be at least 1, not {limit}", code="data.bad-limit", key="limit"
        )
    options = dict(options or {})
    if source in data_sets():
        return _load_named(source, split, limit, options)
    if is_path(source):
        given = {"path": source, "limit": limit, "split": split, "need_steps": True}
        return call(load_file, source, given, options)
    if _HUB_NAME.fullmatch(source):
        return call(load_hub, source, {"name": source, "split": split, "limit": limit}, options)
    raise unknown_name(
        "data set",
        source,
        data_sets(),
        "or give a file, or a Hub name 'owner/name'",
        code="data.unknown-data-set",
    )


def data_sets() -> list[str]:
    """Return the names of the data sets in this folder."""
    return registry.names("data")


def note_on_related(source: str, task: str) -> str | None:
    """Return what a score on a task must say if the training data was made from its questions.

    Args:
        source: the training data, `data.train`; of a data set of this package, `RELATED_TASKS`
            names such tasks.
    """
    related = (
        getattr(registry.module("data", source), "RELATED_TASKS", ())
        if source in data_sets()
        else ()
    )
    if task not in related:
        return None
    return (
        f"the training problems ({source}) were made from test questions of GSM8K: do not report "
        f"this as a score on {task}"
    )


def is_path(source: str) -> bool:
    """Whether `source` is the path of a file or folder, existing or not, and not a Hub name."""
    path = assets.expand_user(source)
    return (
        source.startswith(shards.HUB)
        or path.exists()
        or path.suffix.lower() in _FILE_ENDINGS
        or ("/" in source and not _HUB_NAME.fullmatch(source))
    )


def load_file(
    path: str | Path,
    *,
    limit: int | None = None,
    split: str | None = None,
    field: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    steps: str | None = None,
    annotations: rows.Annotations = "remove",
    need_steps: bool = True,
) -> list[Example]:
    """Load all examples of a local file or of several, or the first `limit`.

    Args:
        need_steps: whether a row must state its chain of thought, which may be empty.
        split, field, question, answer, steps, annotations: see `load_examples`.

    Raises:
        KavaError: as `load_examples`.
    """
    path = path if str(path).startswith(shards.HUB) else assets.expand_user(path)
    columns = rows.Columns(question, answer, steps, annotations, field)
    found = files.read_rows(path, split, columns.field)
    return rows.to_examples(found, str(path), files.stem_of(path), limit, columns, need_steps)


def load_hub(
    name: str,
    split: str,
    *,
    limit: int | None = None,
    config: str | None = None,
    question: str | None = None,
    answer: str | None = None,
    steps: str | None = None,
    annotations: rows.Annotations = "remove",
) -> list[Example]:
    """Load all examples of one split of a Hub data set, or its first `limit`.

    Raises:
        KavaError: as `load_examples`.
    """
    columns = rows.Columns(question, answer, steps, annotations)
    found = hub_rows(name, split, config)
    stem = f"{name.rpartition('/')[2]}-{split}"
    return rows.to_examples(found, f"{name}, split {split}", stem, limit, columns, True)


def hub_rows(
    name: str, split: str, config: str | None = None, instead: str = "data.train=FILE"
) -> Iterator[rows.Row]:
    """Iterate lazily over the rows of a Hub data set, each with its location for error messages.

    Raises:
        KavaError: if the Hub is offline, or if the data set is gated, missing, or has no such
            split. The message names `instead`, the argument that takes a local file.
    """
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    # If the Hub is unreachable, `datasets` retries for half a minute before it uses its own cache.
    datasets.config.HF_HUB_OFFLINE = before or not hub.is_reachable(name, "dataset")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise KavaError(
            f"cannot load split '{split}' of '{name}' from the Hugging Face Hub "
            f"({first_line(error) or type(error).__name__}); go online,"
            f" log in with `hf auth login` and accept the licence at"
            f" https://huggingface.co/datasets/{name}, or pass {instead}",
            code="data.not-had",
            key=name,
        ) from error
    finally:
        datasets.config.HF_HUB_OFFLINE = before
    hub.record_download(
        name, f"split '{split}'", [Path(file["filename"]) for file in table.cache_files]
    )
    found = cast("Iterable[dict[str, Any]]", table)
    return ((f"{name}, split {split}, row {n}", row) for n, row in enumerate(found, 1))


def revision(source: str, options: dict[str, Any]) -> str | None:
    """Return the commit of a Hub data set; None for other sources or if the Hub does not answer."""
    if is_path(source) or "file" in options:
        return None
    if source in data_sets():
        hub_name = getattr(registry.module("data", source), "hub_name", None)
        return hub.revision(hub_name(options), "dataset") if hub_name else None
    return hub.revision(source, "dataset")


def rows_hash(examples: Sequence[Example]) -> str:
    """Return the SHA-256 of the questions, chains of thought and answers, in order."""
    digest = hashlib.sha256()
    for example in examples:
        row = (example.question, *example.steps, example.answer)
        digest.update(json.dumps(row, ensure_ascii=False).encode())
    return digest.hexdigest()


def _load_named(name: str, split: str, limit: int | None, options: dict[str, Any]) -> list[Example]:
    module = registry.module("data", name)
    if hasattr(module, "load"):
        return call(module.load, name, {"split": split, "limit": limit}, options)
    counts = [n for n in (limit, options.pop("count", None)) if n is not None]
    if not counts or not all(isinstance(n, int) and n > 0 for n in counts):
        raise KavaError(
            f"{name} is generated on the fly; set the number of examples with limit or its option "
            "count, a whole number above 0",
            code="data.no-count",
            key="count",
        )
    return call(module.generate, name, {"split": split, "count": min(counts)}, options)


def call(
    function: Callable[..., Any],
    description: str,
    fixed_options: dict[str, Any],
    options: dict[str, Any],
    further: Sequence[str] = (),
) -> Any:
    """Call `function(**fixed_options, **options)`, where `options` were written by a user.

    Args:
        further: names of options that the caller has already used, for the message.

    Raises:
        KavaError: if `function` does not have an option, or rejects its value.
    """
    parameters = inspect.signature(function).parameters
    known = [*(name for name in parameters if name not in fixed_options), *further]
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in options:
        if name in fixed_options or (name not in known and not passes_on):
            if not known:
                raise KavaError(
                    f"{description} has no options; remove '{name}'",
                    code="data.no-options",
                    key=name,
                )
            raise unknown_name(f"option of {description}:", name, known, code="data.unknown-option")
    try:
        return function(**fixed_options, **options)
    except (TypeError, ValueError) as error:
        raise KavaError(
            f"{description}: {error}", code="data.bad-option", key=description
        ) from error
