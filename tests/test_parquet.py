"""Parquet files whose rows are larger than the file: refused by their footer, or read in parts."""

import pyarrow
import pyarrow.parquet
import pytest
from refusals import refused

from kava.data import parquet
from kava.data.files import read_rows


def write(file, count=5, question="w1", **options):
    """A file whose rows all refer to one question."""
    texts = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * count, "int32"), [question])
    table = pyarrow.table({"question": texts, "answer": [str(i) for i in range(count)]})
    pyarrow.parquet.write_table(table, file, compression="zstd", **options)
    return file


@pytest.fixture
def unread(monkeypatch):
    """Nothing but the footer may be read."""

    class Footer(pyarrow.parquet.ParquetFile):
        def iter_batches(self, *_, **__):
            pytest.fail("data was read")

    monkeypatch.setattr(pyarrow.parquet, "ParquetFile", Footer)


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("ROWS", 4, "5 rows"), ("COLUMNS", 1, "2 columns"), ("ROW_GROUPS", 2, "3 row groups"),
        ("VALUES", 9, "10 values"), ("GROUP_BYTES", 10, "row group 1"),
        ("FILE_BYTES", 100, "bytes without compression"),
    ],
)  # fmt: skip
def test_the_footer_is_compared_with_limits(tmp_path, monkeypatch, unread, limit, value, words):
    file = write(tmp_path / "rows.parquet", row_group_size=2)
    monkeypatch.setattr(parquet, limit, value)
    with refused("data.parquet-too-large", str(file)) as caught:
        list(read_rows(file))
    told = str(caught.value)
    assert words in told and f"at most {value:,}" in told and "\n" not in told


def test_rows_that_refer_to_one_long_text_are_counted(tmp_path, monkeypatch):
    """A file of kilobytes decodes to 20 GB; only the limit and one batch are decoded."""
    file = write(tmp_path / "bomb.parquet", 20_000, "x" * 1_000_000)
    assert file.stat().st_size < 200_000
    monkeypatch.setattr(parquet, "FILE_BYTES", 20 << 20)
    monkeypatch.setattr(parquet, "BATCH_BYTES", 8 << 20)
    seen = 0
    with refused("data.parquet-too-large", str(file)) as caught:
        for _ in read_rows(file):
            seen += 1
    assert 0 < seen <= 21 and "when unpacked" in str(caught.value)


def test_ordinary_files_are_read_in_large_batches(tmp_path):
    file = write(tmp_path / "rows.parquet", 3000)
    with pyarrow.parquet.ParquetFile(file) as table:
        assert parquet._check(file, table.metadata) == parquet.BATCH_ROWS
    found = list(read_rows(file))
    assert found[-1] == (f"{file}, row 3000", {"question": "w1", "answer": "2999"})


def test_what_is_stored_as_often_as_it_is_used_needs_no_small_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 2000)
    file = write(tmp_path / "rows.parquet", 300, use_dictionary=False)
    with pyarrow.parquet.ParquetFile(file) as table:
        assert parquet._check(file, table.metadata) == parquet.BATCH_ROWS
