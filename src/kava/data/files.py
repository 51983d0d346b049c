"""Read rows from local files (JSON lines, Parquet, one-line text) and turn rows into examples."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from decimal import Decimal, InvalidOperation
from itertools import islice
from pathlib import Path
from typing import Any

from kava.data.answers import canonical, plain_number
from kava.errors import KavaError, first_line
from kava.system.text import check_text
from kava.types import Example

Row = tuple[str, dict[str, Any]]  # location for error messages; fields


def read_rows(path: Path) -> Iterator[Row]:
    """Iterate lazily over the rows of a file, in order.

    Raises:
        KavaError: if the file does not exist, is a folder, or has an extension that is not in
            `FORMATS`; while iterating, if a row is not UTF-8 or malformed (names file and line).
    """
    if not path.exists():
        raise KavaError(f"{path}: no such file", code="data.no-file", key=str(path))
    if path.is_dir():
        raise KavaError(
            f"{path} is a folder; give a single file ({', '.join(FORMATS)})",
            code="data.is-folder",
            key=str(path),
        )
    if not os.access(path, os.R_OK):
        raise KavaError(
            f"{path}: permission denied; change its permissions",
            code="data.unreadable",
            key=str(path),
        )
    reader = FORMATS.get(path.suffix.lower())
    if reader is None:
        raise KavaError(
            f"{path}: a data file must end in one of {', '.join(FORMATS)}",
            code="data.unknown-format",
            key=str(path),
        )
    return reader(path)


def to_examples(
    rows: Iterable[Row], source: str, stem: str, limit: int | None = None, steps: str | None = None
) -> list[Example]:
    """Convert the first `limit` rows, or all rows, to examples.

    A row without an id gets the id `<stem>-<index>`, with the index counted from 0. Fields other
    than the id, question, steps and answer go into `extra` as text.

    Raises:
        KavaError: if a field is missing or invalid (names the row); if an id is repeated; or if
            there are no rows.
    """
    seen: dict[str, str] = {}
    examples = []
    for index, (where, row) in enumerate(islice(rows, limit)):
        example = to_example(row, where, f"{stem}-{index}", steps)
        if example.id in seen:
            raise KavaError(
                f"{where}: id '{example.id}' is already used by {seen[example.id]}",
                code="data.repeated-id",
                key=example.id,
            )
        seen[example.id] = where
        examples.append(example)
    if not examples:
        raise KavaError(f"{source} contains no rows", code="data.no-rows", key=source)
    return examples


def to_example(
    row: dict[str, Any], where: str, default_id: str, steps: str | None = None
) -> Example:
    """Validate one row and return it as an example.

    Args:
        steps: the name of the field with the chain of thought. By default `steps` if the row has
            it, otherwise `cot`.

    Returns:
        The example. Its answer may be a number or a text in the row; commas between thousands are
        removed. All other text stays unchanged.

    Raises:
        KavaError: if a field is missing, empty, of the wrong type, or not valid Unicode.
    """
    field = steps or ("steps" if "steps" in row else "cot")
    _check_field(row, "question", where)
    _check_field(row, "answer", where)
    _check_field(row, field, where, steps or "steps' or 'cot")
    question = question_of(row, where)
    written = row[field]
    if not isinstance(written, list) or not all(isinstance(step, str) for step in written):
        raise KavaError(
            f"{where}: '{field}' must be a list of strings, not {_brief(written)}",
            code="data.bad-field",
            key=field,
        )
    used = {"id", "question", "answer", field}
    extra = {key: _text(value) for key, value in row.items() if key not in used}
    identity = default_id if row.get("id") is None else str(row["id"])
    example = Example(identity, question, tuple(written), _answer(row["answer"], where), extra)
    parts = {"id": [identity], "question": [question], field: written, "answer": [example.answer]}
    for name, texts in parts.items():
        for text in texts:
            check_text(text, f"{where}: '{name}'")
    return example


def question_of(row: dict[str, Any], where: str) -> str:
    """Return the question of a row.

    Raises:
        KavaError: if the question is missing, empty or not a text.
    """
    _check_field(row, "question", where)
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise KavaError(
            f"{where}: 'question' must be a non-empty string, not {question!r}",
            code="data.bad-field",
            key="question",
        )
    return question


def _check_field(row: dict[str, Any], field: str, where: str, told: str | None = None) -> None:
    if field not in row:
        there = ", ".join(map(str, row)) or "none"
        raise KavaError(
            f"{where}: no field '{told or field}'; the row has: {there}",
            code="data.missing-field",
            key=field,
        )


def _answer(value: Any, where: str) -> str:
    if isinstance(value, (int, Decimal)) and not isinstance(value, bool):
        return plain_number(Decimal(value))
    if isinstance(value, float) and math.isfinite(value):
        return plain_number(Decimal(repr(value)))  # the digits as written, without binary noise
    if not isinstance(value, str) or not value.strip():
        raise KavaError(
            f"{where}: 'answer' must be a number or a string, not {_brief(value)}",
            code="data.bad-field",
            key="answer",
        )
    return canonical(value.strip())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with its location. Only a line feed ends one: a text may contain U+2028."""
    blank = None
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            where = f"{path}, line {number}"
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
            except UnicodeDecodeError as error:
                at = f"byte {error.start + 1} is 0x{raw[error.start]:02x}"
                raise KavaError(
                    f"{where}: not UTF-8 ({at}); save the file as UTF-8",
                    code="data.not-utf8",
                    key=where,
                ) from error
            if not line:
                blank = blank or where
            elif blank:  # blank lines at the end are harmless; one in between may be a lost row
                raise KavaError(
                    f"{blank}: the line is empty; delete it",
                    code="data.empty-line",
                    key=blank,
                )
            else:
                yield where, line


def _json_rows(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        yield where, _object(_parse(line, where, "one object per line"), where)


def _json_list(path: Path) -> Iterator[Row]:
    """Yield the rows of a `.json` file: one list of objects, or one object per line."""
    with path.open("rb") as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start.startswith(b"["):
        yield from _json_rows(path)
        return
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise KavaError(
            f"{path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8",
            code="data.not-utf8",
            key=str(path),
        ) from error
    for number, row in enumerate(_parse(text, str(path), "a list of objects"), 1):
        yield f"{path}, row {number}", _object(row, f"{path}, row {number}")


def _parse(text: str, where: str, form: str) -> Any:
    try:
        # Decimal keeps the digits of an answer as they are in the file.
        return json.loads(text, parse_float=Decimal, parse_constant=_refuse)
    except InvalidOperation:
        raise KavaError(
            f"{where}: a number has an exponent that is too large; {form}",
            code="data.number-beyond-reason",
            key=where,
        ) from None
    except (ValueError, RecursionError) as error:
        raise KavaError(
            f"{where}: broken JSON ({error}); {form}", code="data.bad-json", key=where
        ) from error


def _object(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise KavaError(
            f"{where}: expected a JSON object, got {_brief(row)}; write one object per line",
            code="data.not-an-object",
            key=where,
        )
    return row


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _text_rows(path: Path) -> Iterator[Row]:
    """Yield rows in the format in which GSM8k-Aug was published (Deng et al., arXiv:2405.14838).

    Runs of blanks in a question are reduced to one, as in the JSON versions of these files. The
    original files have one or two blanks after a sentence, depending on who wrote it.
    """
    for where, line in _lines(path):
        problem, mark, answer = line.rpartition("####")
        question, bars, steps = problem.rpartition("||")
        if not (mark and bars):
            lacks = "####" if not mark else "||"
            raise KavaError(
                f"{where}: '{lacks}' is missing; the format is question||steps #### answer",
                code="data.not-its-form",
                key=where,
            )
        written = re.split(r"(?<=>>)\s*(?=<<)", steps.strip()) if steps.strip() else []
        yield where, {"question": " ".join(question.split()), "steps": written, "answer": answer}


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=1024):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        why = first_line(error)
        raise KavaError(
            f"{path}: not a readable Parquet file ({why})", code="data.bad-parquet", key=str(path)
        ) from error


FORMATS = {
    ".jsonl": _json_rows,
    ".json": _json_list,
    ".parquet": _parquet_rows,
    ".txt": _text_rows,
}
