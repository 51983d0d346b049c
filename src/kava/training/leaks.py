"""Training questions that are test questions: found before a training, or by `kava data check`.

Two questions are `equal` when their normal forms are: Unicode NFKC, case folded, apostrophes and
thousands commas gone, every other sign and run of blanks one blank (ours). They are equal
`up to numbers` when their normal forms are with each number replaced, written in digits or as a
word from zero to twenty.
"""

from __future__ import annotations

import json
import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from kava.data import is_file, load_examples
from kava.data.files import question_of, read_rows
from kava.data.tasks import Task, load_task, local_copies
from kava.data.tasks._rows import unfold
from kava.errors import KavaError
from kava.system import assets
from kava.types import Example

if TYPE_CHECKING:
    from rich.console import Console

    from kava.recipe.schema import Data

Kind = Literal["equal", "up to numbers"]
EQUAL: Kind = "equal"
UP_TO_NUMBERS: Kind = "up to numbers"
SHOWN = 10  # leaks printed; --json has all
_SHORT = 100  # characters of a question in a report
_HOW = (
    'data.leak_check=[gsm8k] asks; of a file: data.leak_check=[rows] "data.leak_files={rows: FILE}"'
)

_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty"
)
_DROPPED = re.compile(r"['’]|(?<=\d),(?=\d{3})")
_FOLDED = re.compile(r"(?:[^\w.]|_|\.(?!\d)|(?<=[^\W\d])\.)+")  # a point stays before a digit
_SIGN_IN_NUMBER = re.compile(r"[.,]\d")
_ASCII = {ord(sign): None if sign == "'" else " " for sign in string.punctuation}
_NUMBER = re.compile(rf"\d*\.?\d+|\b(?:{'|'.join(_WORDS.split())})\b")


@dataclass(frozen=True)
class Leak:
    """A training row and the first test row that it equals.

    train: where the training row stands, or its id. test: the test row's id. The questions are
    shortened.
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
    """The normal form of a question."""
    if question.isascii() and not _SIGN_IN_NUMBER.search(question):  # three times as fast
        return " ".join(question.lower().translate(_ASCII).split()) or " ".join(question.split())
    text = question if question.isascii() else unicodedata.normalize("NFKC", question)
    text = _DROPPED.sub("", text.casefold())
    # A question of signs alone has no words to go by: it keeps them.
    return _FOLDED.sub(" ", text).strip() or " ".join(text.split())


def without_numbers(normal_form: str) -> str:
    """A normal form with `#` for each number."""
    return _NUMBER.sub("#", normal_form)


def find_leaks(rows: Iterable[tuple[str, str]], task: Task) -> Iterator[Leak]:
    """Leaks among training rows (where each stands, its question), one per row at most, in order.

    A row that equals one test question and equals another up to numbers counts as equal.
    """
    exact: dict[str, Example] = {}
    loose: dict[str, Example] = {}
    for example in task.examples:
        form = normalize(example.question)
        exact.setdefault(form, example)
        loose.setdefault(without_numbers(form), example)
    for where, question in rows:
        form = normalize(question)
        for kind, found in (
            (EQUAL, exact.get(form)),
            (UP_TO_NUMBERS, loose.get(without_numbers(form))),
        ):
            if found:
                short = _shortened(question), _shortened(found.question)
                yield Leak(kind, task.name, where, found.id, *short)
                break


# -- before a training ---------------------------------------------------------------------------


def check_training_rows(data: Data, rows: list[Example], console: Console | None) -> None:
    """Compare training rows with the tasks of `data.leak_check`; tells the console what came out.

    Raises:
        KavaError: a leak of a kind that stops (`data.leak_stop`) and is not allowed by name; a
            task whose rows cannot be had.
    """
    say = console.print if console else lambda *words, **options: None
    if not data.leak_check and data.train != "synthetic":
        say(f"leak check: none asked for; {_HOW}", style="dim", highlight=False, markup=False)
    for name in data.leak_check or []:
        try:
            task = load_task(name, file=data.leak_files.get(name))
        except KavaError as error:
            raise KavaError(
                f"data.leak_check: {error}; data.leak_files={{{name}: FILE}} gives a local copy,"
                " data.leak_check=[] trains without the check",
                code=error.code,
                key=error.key,
            ) from None
        leaks = list(find_leaks(((e.id, e.question) for e in rows), task))
        say(f"leak check: {format_summary(leaks, len(rows), task)}", style="dim", highlight=False)
        stopping = _stopping(leaks, data.leak_stop == "up_to_numbers")
        stopping = [x for x in stopping if not {x.task, name, x.test} & set(data.allow_leaks)]
        if stopping:
            raise KavaError(
                f"data: {len(stopping):,} training questions are test questions of {name}, such as"
                f" {stopping[0]}; take them out, or allow them by name:"
                f" data.allow_leaks=[{_ids(stopping)}], or [{name}] for all",
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
) -> int:
    """Compare a file, or the training rows of a data set, with tasks, and print what was found.

    Args:
        files: local copies of the tasks' rows, one for each in their order.
        options: of the tasks.
        strict: what equals a test question up to numbers is a leak too.

    Returns:
        1 if there is a leak, else 0.

    Raises:
        KavaError: rows that cannot be had or read, an unknown task, files that are not one
            for each task.
    """
    copies = zip(tasks, local_copies("data check", tasks, files), strict=True)
    loaded = [load_task(name, file=file, options=options) for name, file in copies]
    rows = list(_questions(source))
    found = {task.name: list(find_leaks(rows, task)) for task in loaded}
    leaks = [leak for of_task in found.values() for leak in of_task]
    if as_json:
        counts = {
            task.name: {"rows": len(task.examples), **_counts(found[task.name])} for task in loaded
        }
        told_all = {"rows": len(rows), "against": counts, "leaks": [asdict(x) for x in leaks]}
        print(json.dumps(told_all, indent=1, ensure_ascii=False))
    else:
        for leak in sorted(leaks, key=lambda leak: leak.kind)[:SHOWN]:  # equal ones first
            console.print(str(leak), highlight=False, markup=False)
        if len(leaks) > SHOWN:
            console.print(f"... and {len(leaks) - SHOWN:,} more; --json lists them all")
        for task in loaded:
            console.print(format_summary(found[task.name], len(rows), task), highlight=False)
    return 1 if _stopping(leaks, strict) else 0


def format_summary(leaks: list[Leak], rows: int, task: Task) -> str:
    """How many of each kind, in words."""
    counts = _counts(leaks)
    touched = len({leak.test for leak in leaks})
    return (
        f"of {rows:,} training questions {counts['equal']:,} equal one of the"
        f" {len(task.examples):,} of {task.name}, {counts['up_to_numbers']:,} more equal one up to"
        f" numbers" + (f" ({touched:,} of its questions in all)" if leaks else "")
    )


def _questions(source: str) -> Iterator[tuple[str, str]]:
    """Where each row stands and its question; only the question of a file's rows is looked at."""
    if not is_file(source):
        yield from ((e.id, e.question) for e in load_examples(source, "train"))
        return
    empty = True
    for where, row in unfold(read_rows(assets.expand_user(source))):
        empty = False
        yield where, question_of(row, where)
    if empty:
        raise KavaError(f"{source} holds no rows", code="data.no-rows", key=source)


def _counts(leaks: list[Leak]) -> dict[str, int]:
    kinds = [leak.kind for leak in leaks]
    return {"equal": kinds.count(EQUAL), "up_to_numbers": kinds.count(UP_TO_NUMBERS)}


def _stopping(leaks: list[Leak], strict: bool) -> list[Leak]:
    return [leak for leak in leaks if strict or leak.kind == EQUAL]


def _ids(leaks: list[Leak]) -> str:
    ids = list(dict.fromkeys(leak.test for leak in leaks))
    return ", ".join(ids[:3]) + (", ..." if len(ids) > 3 else "")


def _shortened(question: str) -> str:
    text = " ".join(question.split())
    return text if len(text) <= _SHORT else f"{text[: _SHORT - 3]}..."
