"""Read files of predictions from any program, and pair them with the examples that they answer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kava.data.files import read_rows
from kava.errors import KavaError, truncate
from kava.types import Example

FIELD = "prediction"
_HARNESS = ("doc_id", "resps")  # fields of the sample files of lm-evaluation-harness


@dataclass(frozen=True)
class Prediction:
    """A generated text, its location, and its id or the index of its example if it states one."""

    location: str
    text: str
    id: str | None = None
    index: int | None = None
    question: str | None = None


def read_predictions(file: str, field: str | None = None) -> list[Prediction]:
    """Read the rows of a predictions file.

    A sample file of lm-evaluation-harness (`--log_samples`) has each document once per filter; the
    text is the response before any filter.

    Args:
        field: the field with the text, by default `prediction`; `a.b.0` is inside of others.

    Raises:
        KavaError: if the text of a row is missing or not a text (names the line); if a document has
            several texts; or if there are no rows.
    """
    found: list[Prediction] = []
    documents: dict[int, Prediction] = {}
    for where, row in read_rows(file, "test"):
        if not all(name in row for name in _HARNESS):
            identity = row.get("id")
            text = _text(row, field or FIELD, where)
            found.append(Prediction(where, text, None if identity is None else str(identity)))
            continue
        one = _from_harness_sample(row, field or "resps", where)
        before = documents.setdefault(one.index or 0, one)
        if before.text != one.text:
            raise KavaError(
                f"{where}: document {one.index} has another '{field or 'resps'}' at "
                f"{before.location}; keep the rows of one filter",
                code="evaluation.several-predictions",
                key=str(one.index),
            )
    if documents and found:
        raise KavaError(
            f"{file}: some rows are samples of lm-evaluation-harness and others are not",
            code="evaluation.mixed-rows",
            key=str(file),
        )
    found = found or [documents[index] for index in sorted(documents)]
    if not found:
        raise KavaError(f"{file} contains no rows", code="data.no-rows", key=str(file))
    return found


def pair_with_examples(
    predictions: Sequence[Prediction], examples: Sequence[Example], file: str, source: str
) -> list[tuple[Example, str]]:
    """Pair each example with its prediction.

    By index for samples of lm-evaluation-harness, by id if every prediction has one, otherwise by
    order.

    Raises:
        KavaError: by id or index, if one is unknown or repeated, or an example has no prediction;
            by order, if the numbers differ, or a prediction has another id than the example in its
            place; if a sample asks another question than its example.
    """
    if predictions[0].index is not None:
        predictions = [_with_id(one, examples, source) for one in predictions]
    if any(one.id is None for one in predictions):
        return _pair_by_order(predictions, examples, file, source)
    known = {example.id for example in examples}
    texts: dict[str, Prediction] = {}
    for one in predictions:
        if one.id not in known:
            raise KavaError(
                f"{one.location}: id '{one.id}' does not exist in {source}, whose "
                f"{len(examples):,} ids look like '{examples[0].id}'; "
                "if no row has an id, rows are matched by order",
                code="evaluation.unknown-id",
                key=one.id,
            )
        if one.id in texts:
            raise KavaError(
                f"{one.location}: id '{one.id}' is already used by {texts[one.id].location}",
                code="data.repeated-id",
                key=one.id,
            )
        texts[one.id] = one
    missing = [example.id for example in examples if example.id not in texts]
    if missing:
        raise KavaError(
            f"{file} has {len(texts):,} rows and {source} has {len(examples):,}; the first "
            f"example without a prediction is '{missing[0]}'",
            code="evaluation.missing-predictions",
            key=missing[0],
        )
    return [(example, texts[example.id].text) for example in examples]


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value: Any = row
    for part in [field] if field in row else field.split("."):
        inside = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            inside = value[int(part)]
        if inside is None:
            raise KavaError(
                f"{where}: no field '{field}'; name the one with the generated text with --field; "
                f"the row has: {', '.join(row)}",
                code="data.missing-field",
                key=field,
            )
        value = inside
    while isinstance(value, list) and len(value) == 1:  # one request, one response
        value = value[0]
    if not isinstance(value, str):
        raise KavaError(
            f"{where}: '{field}' must be the generated text, not {truncate(repr(value), 60)}",
            code="data.bad-field",
            key=field,
        )
    return value


def _from_harness_sample(row: dict[str, Any], field: str, where: str) -> Prediction:
    index, document = row["doc_id"], row.get("doc")
    if not isinstance(index, int) or isinstance(index, bool) or index < 0:
        raise KavaError(
            f"{where}: 'doc_id' must be the index of a document, not {truncate(repr(index), 60)}",
            code="data.bad-field",
            key="doc_id",
        )
    question = document.get("question") if isinstance(document, dict) else None
    asked = question if isinstance(question, str) else None
    return Prediction(where, _text(row, field, where), None, index, asked)


def _with_id(one: Prediction, examples: Sequence[Example], source: str) -> Prediction:
    """Return a sample of the harness with the id of the example that it answers."""
    index = one.index or 0
    if index >= len(examples):
        raise KavaError(
            f"{one.location}: doc_id {index} does not exist in {source}, which has "
            f"{len(examples):,} rows",
            code="evaluation.unknown-id",
            key=str(index),
        )
    example = examples[index]
    if one.question is not None and one.question.split() != example.question.split():
        raise KavaError(
            f"{one.location}: doc_id {index} asks {truncate(one.question, 60)!r}, and row {index} "
            f"of {source} asks {truncate(example.question, 60)!r}",
            code="evaluation.other-question",
            key=str(index),
        )
    return Prediction(one.location, one.text, example.id)


def _pair_by_order(
    predictions: Sequence[Prediction], examples: Sequence[Example], file: str, source: str
) -> list[tuple[Example, str]]:
    if len(predictions) != len(examples):
        raise KavaError(
            f"{file} has {len(predictions):,} rows and {source} has {len(examples):,}; if a row "
            "has no id, rows are matched by order and both must have the same number",
            code="evaluation.uneven-rows",
            key=str(file),
        )
    for one, example in zip(predictions, examples, strict=True):
        if one.id not in (None, example.id):
            raise KavaError(
                f"{one.location}: id '{one.id}' is at the position of '{example.id}' in {source}; "
                "other rows have no id, so rows are matched by order",
                code="evaluation.other-order",
                key=one.id,
            )
    return [(e, one.text) for e, one in zip(examples, predictions, strict=True)]
