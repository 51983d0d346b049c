"""Where examples come from: a data set of this package, a local file, or the Hugging Face Hub.

A new data set is one new file in this folder, whose name is the name of the data set, with
`load(split, limit, **options) -> list[Example]`; or, where rows are made on the spot,
`generate(split, count, **options) -> list[Example]`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

from kava.data import files
from kava.errors import KavaError, unknown
from kava.recipe import registry
from kava.system import assets, hub
from kava.types import Example

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
# A dot may be part of a Hub name (`v1.5`), so only endings that mean a file count as one.
_FILE_ENDINGS = {*files.FORMATS, ".csv", ".tsv", ".gz", ".zip", ".xlsx", ".arrow", ".yaml"}


def load_examples(
    source: str,
    split: str = "train",
    *,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> list[Example]:
    """Load the examples of one split, in order; no row is left out.

    Args:
        source: a data set of this package (`gsm8k_aug`), a file (`rows.jsonl`, `.json` with a list
            or one object per line, `.parquet`, or `.txt` with `question||steps #### answer`), or a
            Hub data set (`owner/name`), in this order of precedence.
        split: `train`, `validation` or `test`. A file is one split, so there it is not used.
        limit: the first `limit` rows only; also how many to make where rows are generated.
        options: keyword arguments of the data set. For a file `steps`, the field with the steps
            if it is neither `steps` nor `cot`; for the Hub also `config`.

    Raises:
        KavaError: unknown source, option or split; unreadable file or Hub; a broken row, by file,
            line and field; a repeated id; no rows at all; `limit` below 1.
    """
    if limit is not None and limit < 1:
        raise KavaError(
            f"{source}: limit must be at least 1, not {limit}", code="data.bad-limit", key="limit"
        )
    options = dict(options or {})
    if source in data_sets():
        return _load_named(source, split, limit, options)
    if is_file(source):
        return call(load_file, source, {"path": source, "limit": limit}, options)
    if _HUB_NAME.fullmatch(source):
        return call(load_hub, source, {"name": source, "split": split, "limit": limit}, options)
    raise unknown(
        "data set",
        source,
        data_sets(),
        "or give a file, or a Hub name 'owner/name'",
        code="data.unknown-data-set",
    )


def data_sets() -> list[str]:
    """Names of the data sets in this folder."""
    return registry.names("data")


def is_file(source: str) -> bool:
    """Whether `source` means a file or folder, be it there or not, and not a Hub name."""
    path = assets.expand_user(source)
    return (
        path.exists()
        or path.suffix.lower() in _FILE_ENDINGS
        or ("/" in source and not _HUB_NAME.fullmatch(source))
    )


def load_file(
    path: str | Path, *, limit: int | None = None, steps: str | None = None
) -> list[Example]:
    """All examples of a local file, or its first `limit`. Raises KavaError as `load_examples`."""
    path = assets.expand_user(path)
    return files.to_examples(files.read_rows(path), str(path), path.stem, limit, steps)


def load_hub(
    name: str,
    split: str,
    *,
    limit: int | None = None,
    config: str | None = None,
    steps: str | None = None,
) -> list[Example]:
    """All examples of one split of a Hub data set. Raises KavaError as `load_examples`."""
    rows = hub_rows(name, split, config)
    stem = f"{name.rpartition('/')[2]}-{split}"
    return files.to_examples(rows, f"{name}, split {split}", stem, limit, steps)


def hub_rows(
    name: str, split: str, config: str | None = None, instead: str = "data.train=FILE"
) -> Iterator[files.Row]:
    """Rows of a Hub data set with where each stands, read as they are asked for.

    Raises:
        KavaError: offline, gated, not found, or no such split; names `instead`, the argument that
            takes a local file.
    """
    import datasets.config

    before = datasets.config.HF_HUB_OFFLINE
    # Unreachable, `datasets` would retry for half a minute before it looks at its own cache.
    datasets.config.HF_HUB_OFFLINE = before or not hub.reachable(name, "dataset")
    try:
        table = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KavaError(
            f"cannot load split '{split}' of '{name}' from the Hugging Face Hub ({why}); go online,"
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
    rows = cast("Iterable[dict[str, Any]]", table)
    return ((f"{name}, split {split}, row {n}", row) for n, row in enumerate(rows, 1))


def revision(source: str, options: dict[str, Any]) -> str | None:
    """The commit of a data set on the Hub; None for other rows, and where the Hub is silent."""
    if is_file(source) or "file" in options:
        return None
    if source in data_sets():
        hub_name = getattr(registry.module("data", source), "hub_name", None)
        return hub.revision(hub_name(options), "dataset") if hub_name else None
    return hub.revision(source, "dataset")


def rows_hash(examples: Sequence[Example]) -> str:
    """SHA-256 of questions, steps and answers, in order."""
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
            f"{name} is made on the spot; say how many rows, by limit or by its option count: a"
            " whole number above 0",
            code="data.no-count",
            key="count",
        )
    return call(module.generate, name, {"split": split, "count": min(counts)}, options)


def call(
    function: Callable[..., Any], what: str, given: dict[str, Any], options: dict[str, Any]
) -> Any:
    """`function(**given, **options)` for options that a user wrote.

    Raises:
        KavaError: an option that `function` does not have, or a value that it refuses.
    """
    parameters = inspect.signature(function).parameters
    known = [name for name in parameters if name not in given]
    passes_on = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    for name in options:
        if name in given or (name not in known and not passes_on):
            if not known:
                raise KavaError(
                    f"{what} has no options, so no '{name}'", code="data.no-options", key=name
                )
            raise unknown(f"option of {what}:", name, known, code="data.unknown-option")
    try:
        return function(**given, **options)
    except (TypeError, ValueError) as error:
        raise KavaError(f"{what}: {error}", code="data.bad-option", key=what) from error
