"""GSM8k-Aug, validation or test split (Deng et al., arXiv:2405.14838).

The 500 validation rows are part of GSM8K's training set; recipes use them for selection. The 1,319
test questions are those of GSM8K test, with one or two steps as equations.
"""

from kava.data.gsm8k_aug import NAMES, ROWS
from kava.data.rows import DEFAULT_COLUMNS, Columns
from kava.data.tasks import Task
from kava.data.tasks._rows import Source
from kava.errors import unknown_name

VERSION = 1


def load(
    file: str | None = None,
    limit: int | None = None,
    split: str = "test",
    form: str = "equation",
    columns: Columns = DEFAULT_COLUMNS,
) -> Task:
    """Load one split from the Hub, or from `file`.

    Scores on the validation rows are stored under their own name, `gsm8k_aug-validation`.

    Args:
        split: `validation` or `test`.
        form: `equation` or `natural`, the form of the steps; questions and answers are the same.

    Raises:
        KavaError: if the split or form is unknown; if a row is invalid; or, without `limit`, if the
            number of rows differs from the published one.
    """
    splits = [name for name in ROWS if name != "train"]
    if split not in splits:
        raise unknown_name("split of task gsm8k_aug", split, splits, code="data.unknown-split")
    if form not in NAMES:
        raise unknown_name("form of task gsm8k_aug", form, list(NAMES), code="data.unknown-form")
    source = Source(f"GSM8k-Aug {split}", f"gsm8k-aug-{split}", ROWS[split], NAMES[form], (split,))
    name = "gsm8k_aug" if split == "test" else f"gsm8k_aug-{split}"
    return Task(name, VERSION, split, *source.load(file, limit, columns))
