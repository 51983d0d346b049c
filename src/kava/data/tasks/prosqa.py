"""ProsQA: paths through a graph of made-up concepts (Hao et al., arXiv:2412.06769).

A row has `question`, `steps` and `answer`, a sentence such as `Tom is a lempus.`; other fields are
kept and not read. The authors publish 17,886 rows for training, 300 for validation and 500 for the
test as JSON files, in the repository of Coconut. The rule `string` compares the answers; the
headline `numeric` cannot.
"""

from dataclasses import asdict

from kava.data import load_file
from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.errors import KavaError

VERSION = 1


def load(
    file: str | None = None, limit: int | None = None, columns: Columns = DEFAULT_COLUMNS
) -> Task:
    """Load the rows of `file`, such as `prosqa_test.json`.

    Raises:
        KavaError: if no file is given, or a row is invalid.
    """
    if file is None:
        raise KavaError(
            "task prosqa reads a file of its authors; give it with --file prosqa_test.json",
            code="data.file-needed",
            key="file",
        )
    examples = load_file(file, limit=limit, split="test", need_steps=False, **asdict(columns))
    return Task("prosqa", VERSION, "test", examples, file)
