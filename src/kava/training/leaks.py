"""Find training questions that are test questions, before training or with `kava data check`.

Two questions are `equal` if their normal forms are equal. The normal form (ours) is Unicode NFKC,
case folded, without apostrophes and commas between thousands, and with one blank for each run of
other signs and blanks. They are equal `up to numbers` if their normal forms are equal after each
number is replaced, written in digits or as a word from zero to twenty.
"""

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rich.console import Console

from kava.data import call, is_path, load_examples
from kava.data.files import read_rows
from kava.data.rows import columns_of, question_of
from kava.data.tasks import Task, load_task, local_copies
from kava.errors import KavaError
from kava.recipe.schema import Data
from kava.system.text import printable
from kava.types import Example

Kind = Literal["equal", "up to numbers"]
EQUAL: Kind = "equal"
UP_TO_NUMBERS: Kind = "up to numbers"
MOST_PRINTED = 10  # leaks that are printed; --json has all
_SHORT = 100  # characters of a question in a report
_HOW = (
    "enable it with data.leak_check=[gsm8k], or for a file with "
    'data.leak_check=[rows] "data.leak_files={rows: FILE}"'
)

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_DROPPED = re.compile(r"['’]|(?<=\d),(?=\d{3})")
_FOLDED = re.compile(r"(?:[^\w.]|_|\.(?!\d)|(?<=[^\W\d])\.)+")  # keeps a point before a digit
_SIGN_IN_NUMBER = re.compile(r"[.,]\d")
_ASCII = {ord(sign): None if sign == "'" else " " for sign in string.punctuation}
_NUMBER = re.compile(rf"\d*\.?\d+|\b(?:{'|'.join(_WORDS.split())})\b")


@dataclass(frozen=True)
class Leak:
    """A training example and the first test example that it equals.

    train: location of the training row, or its id.
    test: id of the test example.
    train_question, test_question: the questions, shortened.
    """

    kind: Kind
    task: str
    train: str
    test: str
    train_question: str
    test_question: str

    def __str__(self) -> str:
        return (
            f"{self.train} = {self.test} of {self.task} ({self.kind}): {self.train_question!r}"
            + (f" / {self.test_question!r}" if self.kind == UP_TO_NUMBERS else "")
        )


def normalize(question: str) -> str:
    """Return a question case folded, in NFKC and without punctuation (see above)."""
    if question.isascii() and not _SIGN_IN_NUMBER.search(question):  # three times as fast
        return " ".join(question.lower().translate(_ASCII).split()) or " ".join(question.split())
    text = question if question.isascii() else unicodedata.normalize("NFKC", question)
    text = _DROPPED.sub("", text.casefold())
    # A question without any word or number keeps its signs, as it has nothing else to compare.
    return _FOLDED.sub(" ", text).strip() or " ".join(text.split())


def without_numbers(normal_form: str) -> str:
    """Replace each number in a normal form by `#`."""
    return _NUMBER.sub("#", normal_form)


def find_leaks(rows: Iterable[tuple[str, str]], task: Task) -> Iterator[Leak]:
    """Yield the leaks among training rows, in order, at most one for each row.

    If a row equals one test question, and differs from another only in numbers, it counts as equal.

    Args:
        rows: the location of each row and its question.
    """
    exact: dict[str, Example] = {}
    loose: dict[str, Example] = {}
    for example in task.examples:
        form = normalize(example.question)
        exact.setdefault(form, example)
        loose.setdefault(without_numbers(form), example)
    for where, question in rows:
        form = normalize(question)
        both: list[tuple[Kind, Example | None]] = [
            (EQUAL, exact.get(form)),
            (UP_TO_NUMBERS, loose.get(without_numbers(form))),
        ]
        for kind, found in both:
            if found:
                short = _shorten(question), _shorten(found.question)
                yield Leak(kind, task.name, where, found.id, *short)
                break


# -- before a training ---------------------------------------------------------------------------


def check_training_rows(data: Data, rows: list[Example], console: Console | None) -> None:
    """Compare training rows with the tasks of `data.leak_check`, and print the result.

    Raises:
        KavaError: if there is a leak of a kind that stops training (`data.leak_stop`) and that is
            not allowed by name; or if the rows of a task cannot be loaded.
    """
    say = console.print if console else lambda *words, **options: None
    if not data.leak_check and data.train != "synthetic":
        say(f"leak check: not enabled; {_HOW}", style="dim", highlight=False, markup=False)
    for name in data.leak_check or []:
        try:
            task = load_task(name, file=data.leak_files.get(name))
        except KavaError as error:
            raise KavaError(
                f"data.leak_check: {error}; use a local copy with data.leak_files={{{name}: "
                "FILE}, or skip the check with data.leak_check=[]",
                code=error.code,
                key=error.key,
            ) from None
        leaks = list(find_leaks(((e.id, e.question) for e in rows), task))
        say(f"leak check: {format_summary(leaks, len(rows), task)}", style="dim", highlight=False)
        stopping = _leaks_that_stop(leaks, data.leak_stop == "up_to_numbers")
        stopping = [x for x in stopping if not {x.task, name, x.test} & set(data.allow_leaks)]
        if stopping:
            raise KavaError(
                f"data: {len(stopping):,} training questions are test questions of {name}, such "
                f"as {stopping[0]}; remove them, or allow them by name: "
                f"data.allow_leaks=[{_ids(stopping)}], or [{name}] for all",
                code="training.leaks",
                key=name,
            )
        if others := [leak for leak in leaks if leak.kind == UP_TO_NUMBERS]:
            say(f"  such as {others[0]}", style="dim", highlight=False, markup=False)


# -- kava data check -----------------------------------------------------------------------------


def check(
    source: str,
    tasks: list[str],
    files: list[str] | None,
    options: dict[str, Any],
    strict: bool,
    as_json: bool,
    console: Console,
    source_options: dict[str, Any] | None = None,
) -> int:
    """Compare a file, or the training rows of a data set, with tasks, and print the leaks.

    Args:
        files: local copies of the tasks' rows, one for each task in the same order.
        options: options of the tasks.
        source_options: options of `source`, as `data.options` of a recipe.
        strict: whether a question that equals a test question up to numbers is a leak too.

    Returns:
        1 if there is a leak, otherwise 0.

    Raises:
        KavaError: if rows cannot be loaded or read, a task is unknown, or there is not one file for
            each task.
    """
    copies = zip(tasks, local_copies("data check", tasks, files), strict=True)
    loaded = [load_task(name, file=file, options=options) for name, file in copies]
    rows = list(_questions(source, source_options or {}))
    found = {task.name: list(find_leaks(rows, task)) for task in loaded}
    leaks = [leak for of_task in found.values() for leak in of_task]
    if as_json:
        counts = {
            task.name: {"rows": len(task.examples), **_counts(found[task.name])} for task in loaded
        }
        told_all = {"rows": len(rows), "against": counts, "leaks": [asdict(x) for x in leaks]}
        print(printable(json.dumps(told_all, indent=1, ensure_ascii=False)))
    else:
        for leak in sorted(leaks, key=lambda leak: leak.kind)[:MOST_PRINTED]:  # equal ones first
            console.print(str(leak), highlight=False, markup=False)
        if len(leaks) > MOST_PRINTED:
            console.print(f"... and {len(leaks) - MOST_PRINTED:,} more; --json lists them all")
        for task in loaded:
            console.print(format_summary(found[task.name], len(rows), task), highlight=False)
    return 1 if _leaks_that_stop(leaks, strict) else 0


def format_summary(leaks: list[Leak], rows: int, task: Task) -> str:
    """Describe how many leaks of each kind there are."""
    counts = _counts(leaks)
    touched = len({leak.test for leak in leaks})
    return (
        f"of {rows:,} training questions {counts['equal']:,} equal one of the"
        f" {len(task.examples):,} of {task.name}, {counts['up_to_numbers']:,} more equal one up to"
        f" numbers" + (f" ({touched:,} of its questions in all)" if leaks else "")
    )


def _questions(source: str, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the location and question of each row; other fields of a file are not checked."""
    if not is_path(source):
        yield from ((e.id, e.question) for e in load_examples(source, "train", options=options))
        return
    columns, others = columns_of(options)
    empty = True
    for where, row in call(read_rows, source, {"source": source}, {"split": "train", **others}):
        empty = False
        yield where, question_of(row, where, columns)
    if empty:
        raise KavaError(f"{source} contains no rows", code="data.no-rows", key=source)


def _counts(leaks: list[Leak]) -> dict[str, int]:
    kinds = [leak.kind for leak in leaks]
    return {"equal": kinds.count(EQUAL), "up_to_numbers": kinds.count(UP_TO_NUMBERS)}


def _leaks_that_stop(leaks: list[Leak], strict: bool) -> list[Leak]:
    return [leak for leak in leaks if strict or leak.kind == EQUAL]


def _ids(leaks: list[Leak]) -> str:
    ids = list(dict.fromkeys(leak.test for leak in leaks))
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def _shorten(question: str) -> str:
    text = " ".join(question.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
