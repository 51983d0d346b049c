"""Read the rows of local files: JSON, Parquet, Arrow, CSV, one-line text; one file or several."""

import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from functools import partial
from io import BufferedIOBase, BufferedReader, RawIOBase, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import IO, Any, cast

from kava.data import parquet
from kava.data.rows import ROW_FIELDS, Row
from kava.data.shards import find_files
from kava.errors import KavaError, first_line, truncate


def read_rows(
    source: str | Path, split: str | None = None, field: str | None = None
) -> Iterator[Row]:
    """Iterate lazily over the rows of a file or of several, in order.

    Args:
        source: a file, a folder of shards, a folder of `save_to_disk`, a pattern (`part-*.jsonl`),
            several files separated by commas, or `hf://datasets/owner/name/file`.
        split: the split to read of a folder that has several.
        field: the field of a `.json` file that holds the list of rows, if there are several lists.

    Raises:
        KavaError: if a file does not exist, cannot be read, or has an extension that is not in
            `FORMATS`; while iterating, if a row is not UTF-8 or malformed (names file and line).
    """
    files = find_files(source, split, FORMATS)
    return chain.from_iterable(_rows_of(file, field) for file in files)


def stem_of(source: str | Path) -> str:
    """Return the name of a source without its endings, for the ids of rows: `a` of `a.jsonl.gz`."""
    name = Path(str(source)).name.removesuffix(".gz")
    return Path(name).stem


def _rows_of(path: Path, field: str | None) -> Iterator[Row]:
    if not os.access(path, os.R_OK):
        raise KavaError(
            f"{path}: permission denied; change its permissions",
            code="data.unreadable",
            key=str(path),
        )
    reader = FORMATS.get(Path(path.name.lower().removesuffix(".gz")).suffix)
    if reader is None:
        raise KavaError(
            f"{path}: a data file must end in one of {', '.join(FORMATS)}, or in one of them and "
            ".gz",
            code="data.unknown-format",
            key=str(path),
        )
    try:
        yield from _json_list(path, field) if reader is _json_list else reader(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise KavaError(
            f"{path}: not a readable gzip file ({error})", code="data.bad-gzip", key=str(path)
        ) from None


#: Most bytes that a gzip file may hold: some kilobytes of it can unpack to gigabytes.
GZIP_BYTES = 1 << 30


class _Decompressed(RawIOBase):
    """The content of a gzip file, up to `GZIP_BYTES`."""

    def __init__(self, path: Path):
        self.path, self.size = path, 0
        self.file = gzip.open(path, "rb")  # noqa: SIM115 - closed by `close`

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self.file.read(len(buffer))
        buffer[: len(content)] = content
        self.size += len(content)
        if self.size > GZIP_BYTES:
            raise KavaError(
                f"{self.path}: decompresses to more than {GZIP_BYTES:,} bytes; decompress it and "
                "pass the decompressed file",
                code="data.gzip-too-large",
                key=str(self.path),
            )
        return len(content)

    def close(self) -> None:
        self.file.close()
        super().close()


def _open(path: Path) -> BufferedIOBase:
    if path.suffix.lower() != ".gz":
        return path.open("rb")
    return BufferedReader(_Decompressed(path), 1 << 16)


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield each line with its location. Only a line feed ends one: a text may contain U+2028."""
    blank = None
    with _open(path) as file:
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
                    f"{blank}: the line is empty; delete it", code="data.empty-line", key=blank
                )
            else:
                yield where, line


def _json_rows(path: Path) -> Iterator[Row]:
    for where, line in _lines(path):
        yield where, _object(_parse(line, where, "one object per line"), where)


def _json_list(path: Path, field: str | None = None) -> Iterator[Row]:
    """Yield the rows of a `.json` file: a list, one object per line, or an object with a list."""
    with _open(path) as file:
        start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
    if start.startswith(b"[") or field is not None:
        yield from _number_rows(_parse_file(path), path, field)
    elif (only := _parse_single_object(path)) is None:
        yield from _json_rows(path)
    elif (name := _find_list_field(only, path)) is None:
        yield f"{path}, line 1", only
    else:
        yield from _number_rows(only, path, name)


def _parse_file(path: Path) -> Any:
    with _open(path) as file:
        content = file.read()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise KavaError(
            f"{path}: not UTF-8 (byte {error.start + 1}); save it as UTF-8",
            code="data.not-utf8",
            key=str(path),
        ) from error
    return _parse(text, str(path), "a list of objects")


def _parse_single_object(path: Path) -> dict[str, Any] | None:
    """Return the object that is all of a file; None if it has an object on each line."""
    lines = _lines(path)
    where, first = next(lines, ("", ""))
    if not first or (first.endswith("}") and next(lines, None)):
        return None
    if first.endswith("}"):
        return _object(_parse(first, where, "one object per line"), where)
    try:
        found = _parse_file(path)
    except KavaError:
        return None  # one object per line, of which the first is broken
    return found if isinstance(found, dict) else None


def _find_list_field(found: dict[str, Any], path: Path) -> str | None:
    """Return the field of an object that holds the rows; None if the object is a row itself."""
    if any(name in found for name in ROW_FIELDS):
        return None
    lists = [
        name
        for name, value in found.items()
        if isinstance(value, list) and value and isinstance(value[0], dict)
    ]
    if len(lists) > 1:
        raise KavaError(
            f"{path}: several fields hold lists of rows ({', '.join(lists)}); choose one with the "
            "option field, data.options={field: NAME}",
            code="data.which-field",
            key="field",
        )
    return lists[0] if lists else None


def _number_rows(found: Any, path: Path, field: str | None) -> Iterator[Row]:
    for part in field.split(".") if field else ():
        if not isinstance(found, dict) or part not in found:
            there = ", ".join(found) if isinstance(found, dict) else "a list"
            raise KavaError(
                f"{path}: no field '{truncate(part)}'; the file has: {there}",
                code="data.missing-field",
                key=part,
            )
        found = found[part]
    if not isinstance(found, list):
        raise KavaError(
            f"{path}: field '{field}' is not a list of rows", code="data.bad-field", key=field
        )
    for number, row in enumerate(found, 1):
        yield f"{path}, row {number}", _object(row, f"{path}, row {number}")


def _parse(text: str, where: str, form: str) -> Any:
    try:
        # Decimal keeps the digits of an answer as they are in the file.
        return json.loads(text, parse_float=Decimal, parse_constant=float)
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
            f"{where}: expected a JSON object, not {truncate(repr(row), 60)}; write one per line",
            code="data.not-an-object",
            key=where,
        )
    return row


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


def _arrow_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of an Arrow stream, as `datasets` saves it."""
    import pyarrow

    number = 0
    try:
        with pyarrow.OSFile(str(path)) as file, pyarrow.ipc.open_stream(file) as table:
            for batch in table:
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        why = first_line(error)
        raise KavaError(
            f"{path}: not a readable Arrow file ({why})", code="data.bad-arrow", key=str(path)
        ) from error


def _table_rows(path: Path, separator: str) -> Iterator[Row]:
    """Yield the rows of a table of text, whose first line has the names of the fields."""
    number = 0
    try:
        with (
            _open(path) as raw,
            TextIOWrapper(cast("IO[bytes]", raw), "utf-8-sig", newline="") as file,
        ):
            table = csv.reader(file, delimiter=separator, strict=True)
            names = next(table, [])
            for number, cells in enumerate(filter(None, table), 1):
                if len(cells) != len(names) or len(set(names)) != len(names):
                    raise csv.Error(f"{len(cells)} cells for {len(set(names))} different names")
                yield f"{path}, row {number}", dict(zip(names, cells, strict=True))
    except (csv.Error, UnicodeDecodeError) as error:
        raise KavaError(
            f"{path}, row {number}: not a table in UTF-8 with the names of its fields in the first "
            f"line ({error})",
            code="data.bad-table",
            key=str(path),
        ) from None


FORMATS = {
    ".jsonl": _json_rows,
    ".json": _json_list,
    ".ndjson": _json_rows,
    ".parquet": parquet.rows,
    ".arrow": _arrow_rows,
    ".csv": partial(_table_rows, separator=","),
    ".tsv": partial(_table_rows, separator="\t"),
    ".txt": _text_rows,
}
