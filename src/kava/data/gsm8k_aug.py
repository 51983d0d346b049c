"""GSM8k-Aug: the training set of GSM8K, rewritten and enlarged by a language model.

The data set was made by Deng et al. (arXiv:2405.14838). Its chains of thought are equations such as
`<<16-3-4=9>>`. The natural form, GSM8k-Aug-NL, has sentences instead. Both forms are downloaded
from the Hub as uploaded by the authors of PCCoT (arXiv:2506.18582). The 500 validation rows are
part of GSM8K's own training set.
"""

from pathlib import Path
from typing import Any

from kava.data import call, load_file, load_hub
from kava.errors import KavaError, unknown_name
from kava.types import Example

NAMES = {"equation": "whynlp/gsm8k-aug", "natural": "whynlp/gsm8k-aug-nl"}
ROWS = {"train": 385_620, "validation": 500, "test": 1_319}


def load(
    split: str,
    limit: int | None = None,
    form: str = "equation",
    file: str | Path | None = None,
    **columns: Any,
) -> list[Example]:
    """Load one split from the Hub, or from `file`, a local copy of that split.

    Args:
        split: `train`, `validation` or `test`.
        limit: load only the first `limit` rows. Without it, the number of rows is checked.
        form: `equation` or `natural`.
        columns: the options of `kava.data.rows.Columns`, such as `question`.

    Raises:
        KavaError: if the split, form or an option is unknown; if there are fewer or more rows than
            published; or as `load_examples`.
    """
    if split not in ROWS:
        raise unknown_name("split of gsm8k_aug", split, list(ROWS), code="data.unknown-split")
    if form not in NAMES:
        raise unknown_name("form of gsm8k_aug", form, list(NAMES), code="data.unknown-form")
    source = str(file or f"{NAMES[form]}, split {split}")
    given = {"path": file} if file else {"name": NAMES[form], "split": split}
    examples = call(
        load_file if file else load_hub, "gsm8k_aug", {**given, "limit": limit}, columns
    )
    if limit is None and len(examples) != ROWS[split]:
        raise KavaError(
            f"{source} has {len(examples):,} rows and GSM8k-Aug {split} has {ROWS[split]:,}; set "
            "a limit, or use the partial file itself as the data set",
            code="data.other-row-count",
            key=source,
        )
    return examples


def hub_name(options: dict[str, Any]) -> str:
    """Return the Hub name of the form that the options select."""
    return NAMES[options.get("form", "equation")]
