"""Read rows of Parquet files, within limits that are checked in the footer before any data.

A Parquet file of some kilobytes can hold a terabyte: a text is stored once, and the rows refer to
it. JSON lines, which are as large as what they hold, have no limits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kava.errors import KavaError, first_line

#: Limits for a file: rows, columns and row groups, values in all columns, and bytes of the file and
#: of one row group without compression.
ROWS, COLUMNS, ROW_GROUPS, VALUES = 10_000_000, 256, 10_000, 1_000_000_000
FILE_BYTES, GROUP_BYTES = 8 << 30, 1 << 30
BATCH_ROWS, BATCH_BYTES = 1024, 512 << 20  # decoded together
_AS_LARGE = {"PLAIN", "RLE", "BIT_PACKED"}  # with these alone, texts are stored as often as used


def rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the rows of a file, each with its place for error messages.

    Raises:
        KavaError: the file is not valid; its footer declares more than the limits; or, while
            iterating, the rows decompress to more than `FILE_BYTES`.
    """
    import pyarrow
    import pyarrow.parquet

    number, unpacked = 0, 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=_check(path, table.metadata)):
                for row in batch.to_pylist():
                    number += 1
                    unpacked += _text_bytes(row)  # an Arrow batch can refer to one text too
                    _check_limit(path, "bytes when unpacked", unpacked, FILE_BYTES)
                    yield f"{path}, row {number}", row
    except (pyarrow.ArrowException, OSError) as error:
        why = first_line(error)
        raise KavaError(
            f"{path}: not a readable Parquet file ({why})", code="data.bad-parquet", key=str(path)
        ) from error


def _check(path: Path, footer: Any) -> int:
    """Check the footer of a file, and return the number of rows to decode at once.

    A value is at most as large as what its column has in a row group. Where a text can be used more
    often than it is stored, so many rows are decoded at once that `BATCH_BYTES` hold even the
    largest.
    """
    _check_limit(path, "rows", footer.num_rows, ROWS)
    _check_limit(path, "columns", footer.num_columns, COLUMNS)
    _check_limit(path, "row groups", footer.num_row_groups, ROW_GROUPS)
    values, size, largest = 0, 0, 1
    for i in range(footer.num_row_groups):
        columns = [footer.row_group(i).column(j) for j in range(footer.num_columns)]
        group = sum(column.total_uncompressed_size for column in columns)
        _check_limit(path, f"bytes in row group {i + 1} without compression", group, GROUP_BYTES)
        size += group
        values += sum(column.num_values for column in columns)
        repeated = [
            c.total_uncompressed_size for c in columns if not _AS_LARGE.issuperset(c.encodings)
        ]
        largest = max(largest, sum(repeated))
    _check_limit(path, "bytes without compression", size, FILE_BYTES)
    _check_limit(path, "values", values, VALUES)
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def _text_bytes(value: Any) -> int:
    """Estimate the size of a value in bytes, as the total length of all texts in it."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_text_bytes, value.values()))
    return sum(map(_text_bytes, value)) if isinstance(value, list | tuple) else 8


def _check_limit(path: Path, what: str, found: int, most: int) -> None:
    if found > most:
        raise KavaError(
            f"{path}: {found:,} {what}; kava reads at most {most:,} from a Parquet file; split it, "
            "or write the rows as JSON lines",
            code="data.parquet-too-large",
            key=str(path),
        )
