"""Turn a row, in any form in which data sets are published, into a question, steps and an answer.

These forms are read by everything that reads rows; docs/your_data.md describes them:

    question, steps or cot, answer      steps as a list, as one text, or as JSON
    question, answer                    the answer alone, or a solution that ends in `#### 18`
    messages, conversations             one question, one reply that ends in `#### 18`
    prompt, completion                  texts or messages (TRL); `completions` are steps
    instruction, input, output          Alpaca
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import cached_property
from itertools import islice
from typing import Any, Literal, get_args

from kava.data.answers import canonical_form, plain_number
from kava.errors import KavaError, truncate, unknown_name
from kava.system.text import check_text
from kava.types import Example

Row = tuple[str, dict[str, Any]]  # location for error messages; fields

#: Names of fields, of which the first that a row has is read. PAL has `input` and `target`.
QUESTIONS = ("question", "input", "problem", "Problem")
ANSWERS = ("answer", "target", "final_ans", "Answer", "final_answer")
STEPS = ("steps", "cot")
CHATS = ("messages", "conversations")
REPLIES = ("completion", "completions", "output", "response", "solution")
#: Fields by which a JSON object is known as a row.
ROW_FIELDS = (*QUESTIONS, *ANSWERS, *STEPS, *CHATS, *REPLIES, "prompt", "instruction")

Annotations = Literal["remove", "keep", "only"]
_CALCULATOR = re.compile(r"<<[^>]*>>")
_EQUATIONS = re.compile(r"(?:<<[^>]*>>\s*)+")
_MARKER = re.compile(r"####|the\s+answer\s+is\s*:", re.IGNORECASE)
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}


@dataclass(frozen=True)
class Columns:
    """How a row is read.

    question, answer, steps: names of the fields, if they are not the usual ones.
    field: the field of a JSON file that contains the rows, if there are several lists.
    annotations: what to do with the calculator annotations of GSM8K (`16-3 = <<16-3=13>>13`) in a
        solution: `remove` them, `keep` them, or keep `only` them, as steps. A line of nothing else
        is a step in any case.
    """

    question: str | None = None
    answer: str | None = None
    steps: str | None = None
    annotations: Annotations = "remove"
    field: str | None = None

    def __post_init__(self) -> None:
        for name in ("question", "answer", "steps", "field"):
            if not isinstance(value := getattr(self, name), str | None):
                raise KavaError(
                    f"option {name}: give the name of a field, not {value!r}",
                    code="data.bad-option",
                    key=name,
                )
        if self.annotations not in get_args(Annotations):
            raise unknown_name(
                "annotations",
                str(self.annotations),
                get_args(Annotations),
                code="data.unknown-option",
            )


DEFAULT_COLUMNS = Columns()
COLUMN_OPTIONS = tuple(option.name for option in fields(Columns))


def to_examples(
    rows: Iterable[Row],
    source: str,
    stem: str,
    limit: int | None = None,
    columns: Columns = DEFAULT_COLUMNS,
    need_steps: bool = False,
) -> list[Example]:
    """Convert the first `limit` rows, or all rows, to examples.

    A row without an id gets the id `<stem>-<index>`, with the index counted from 0. Fields that
    were not read go into `extra` as text.

    Args:
        need_steps: whether a row must state its chain of thought, which may be empty.

    Raises:
        KavaError: if a field is missing or invalid (names the row); if an id is repeated; or if
            there are no rows.
    """
    location_of: dict[str, str] = {}
    examples = []
    for index, (where, row) in enumerate(islice(rows, limit)):
        example = to_example(row, where, f"{stem}-{index}", columns, need_steps)
        if example.id in location_of:
            raise KavaError(
                f"{where}: id '{example.id}' is already used by {location_of[example.id]}",
                code="data.repeated-id",
                key=example.id,
            )
        location_of[example.id] = where
        examples.append(example)
    if not examples:
        raise KavaError(f"{source} contains no rows", code="data.no-rows", key=source)
    return examples


def to_example(
    row: Mapping[str, Any],
    where: str,
    default_id: str,
    columns: Columns = DEFAULT_COLUMNS,
    need_steps: bool = False,
) -> Example:
    """Validate one row and return it as an example; see `to_examples`.

    The answer may be a number or a text; separators between thousands are removed. All other text
    stays unchanged. A blank step is left out.
    """
    reader = _Reader(row, where, columns)
    reader.check_fields()
    question, steps, answer = reader.question(), reader.steps(), reader.answer()
    if steps is None and need_steps:
        reader.refuse_without_steps()
    extra = {str(k): _text(v) for k, v in row.items() if k not in reader.used | {"id"}}
    given = to_builtin(row.get("id"))
    identity = default_id if _is_missing(given) or given == "" else str(given)
    example = Example(identity, question, tuple(steps or ()), answer, extra)
    named = next((field for field in (columns.steps, *STEPS) if field in reader.used), "steps")
    parts = {"id": [identity], "question": [question], named: example.steps, "answer": [answer]}
    for name, texts in parts.items():
        for text in texts:
            check_text(text, f"{where}: '{name}'")
    return example


def question_of(row: Mapping[str, Any], where: str, columns: Columns = DEFAULT_COLUMNS) -> str:
    """Return the question of a row; no other field is read or checked.

    Raises:
        KavaError: if the question is missing, empty or not a text.
    """
    return _Reader(row, where, columns).question()


class _Reader:
    """The parts of one row; `used` are the fields that were read."""

    def __init__(self, row: Mapping[str, Any], where: str, columns: Columns):
        self.row, self.where, self.columns = row, where, columns
        self.used: set[str] = set()

    def check_fields(self) -> None:
        """Raise a KavaError if there is no field with a question, or none with an answer."""
        self._get_field(self._question_field)
        self._get_field(self._answer_field)

    def question(self) -> str:
        """Return the question, with a system message or an instruction before it."""
        field = self._question_field
        question = self._get_field(field)
        if field in CHATS or isinstance(question, list):
            question, _ = _split_chat(question, f"{self.where}: '{field}'", field in CHATS)
        if field == "instruction" and self.row.get("input") and isinstance(question, str):
            question = f"{question}\n{self._get_field('input')}"
        if not isinstance(question, str) or not question.strip():
            raise _field_error(self.where, field, "must be a non-empty string", question)
        return question

    def answer(self) -> str:
        """Return the answer as text; of a solution, what follows its last marker."""
        solution = self._solution
        if solution is not None and solution.answer is not None:
            return _answer(solution.answer, self.where, self._answer_field)
        value = self._get_field(self._answer_field)
        if self._is_reply:
            raise KavaError(
                f"{self.where}: '{self._answer_field}' states no answer; end it with a line "
                "'#### ANSWER', or with 'The answer is: ANSWER'",
                code="data.no-answer",
                key=self._answer_field,
            )
        return _answer(value, self.where, self._answer_field)

    def steps(self) -> list[str] | None:
        """Return the steps without blank ones; None if the row does not state any."""
        named = self.columns.steps
        field = named or self._first_present(STEPS)
        value = None if field is None else self._get_field(field)
        if not _is_missing(value):
            return self._steps_from_list(value, field or "steps")
        reply = self._first_present((*CHATS, "completion", "completions"))
        solution = self._solution or (self._read_solution(reply) if reply else None)
        return None if solution is None else solution.steps

    def refuse_without_steps(self) -> None:
        """Raise the error for a row that states no chain of thought."""
        if field := next((name for name in STEPS if name in self.row), None):
            raise _steps_error(self.where, field, None)
        self._get_field("cot", "steps' or 'cot")

    @cached_property
    def _question_field(self) -> str:
        if self.columns.question:
            return self.columns.question
        own = self._first_present(("question", *CHATS))
        if own or "instruction" in self.row:
            return own or "instruction"
        is_prompt = "prompt" in self.row and self._first_present(REPLIES)
        return self._first_present(QUESTIONS) or ("prompt" if is_prompt else "question")

    @cached_property
    def _answer_field(self) -> str:
        own = self.columns.answer or self._first_present(ANSWERS)
        return own or self._first_present((*CHATS, *REPLIES)) or "answer"

    @cached_property
    def _is_reply(self) -> bool:
        return not self.columns.answer and self._answer_field in (*CHATS, *REPLIES)

    @cached_property
    def _solution(self) -> _Solution | None:
        return self._read_solution(self._answer_field)

    def _read_solution(self, field: str) -> _Solution | None:
        """Read steps and answer from a field that holds both; None if it is an answer alone."""
        value, is_reply = self._get_field(field), field in (*CHATS, *REPLIES)
        if field == "completions":
            return self._read_stepwise(value)
        if field in CHATS or (is_reply and isinstance(value, list)):
            whole = True if field in CHATS else None
            _, value = _split_chat(value, f"{self.where}: '{field}'", whole)
        if not isinstance(value, str) or not (is_reply or _MARKER.search(value)):
            return None
        return _Solution.of(value, self.columns.annotations)

    def _read_stepwise(self, completions: Any) -> _Solution:
        """Read TRL's stepwise rows: each completion is a step, and the last one has the answer."""
        labels = to_builtin(self.row.get("labels"))
        self.used.add("labels")
        if isinstance(labels, list) and not all(labels):
            raise KavaError(
                f"{self.where}: labels[{labels.index(False)}] says that the step is wrong; remove "
                "rows with wrong steps",
                code="data.wrong-step",
                key="labels",
            )
        steps = self._steps_from_list(completions, "completions")
        last = _Solution.of(steps[-1] if steps else "", self.columns.annotations)
        return _Solution([*steps[:-1], *last.steps], last.answer)

    def _steps_from_list(self, value: Any, field: str) -> list[str]:
        if isinstance(value, str) and value.lstrip().startswith("["):
            value = _json_list(value)
        if isinstance(value, str):
            return split_steps(value, self.columns.annotations)
        if not isinstance(value, list) or not all(isinstance(step, str) for step in value):
            raise _steps_error(self.where, field, value)
        return [step for step in value if step.strip()]

    def _first_present(self, names: Iterable[str]) -> str | None:
        return next((name for name in names if not _is_missing(self.row.get(name))), None)

    def _get_field(self, field: str, shown: str | None = None) -> Any:
        if field not in self.row:
            there = ", ".join(map(str, self.row)) or "none"
            raise KavaError(
                f"{self.where}: no field '{shown or field}'; name it with the option question, "
                f"steps or answer (data.options in a recipe); the row has: {there}",
                code="data.missing-field",
                key=field,
            )
        self.used.add(field)
        return to_builtin(self.row[field])


@dataclass(frozen=True)
class _Solution:
    """Steps and the answer behind the last marker, None if there is no marker."""

    steps: list[str]
    answer: str | None

    @classmethod
    def of(cls, text: str, annotations: Annotations) -> _Solution:
        found = list(_MARKER.finditer(text))
        if not found:
            return cls(split_steps(text, annotations), None)
        # Some solutions state the answer twice, as `#### 18` and as `The answer is: 18`.
        lines = text[: found[-1].start()].rstrip().splitlines()
        if lines and lines[-1].startswith("####"):
            lines.pop()
        return cls(split_steps("\n".join(lines), annotations), text[found[-1].end() :].strip())


def split_steps(text: str, annotations: Annotations = "remove") -> list[str]:
    """Split a chain of thought that is one text: between `>>` and `<<`, otherwise at line ends.

    `annotations`: see `Columns`.
    """
    if annotations == "only":
        return _CALCULATOR.findall(text)
    steps: list[str] = []
    for line in map(str.strip, text.splitlines()):
        if _EQUATIONS.fullmatch(line):
            steps += _CALCULATOR.findall(line)
        else:
            steps.append(line if annotations == "keep" else _CALCULATOR.sub("", line).strip())
    return [step for step in steps if step]


def to_builtin(value: Any) -> Any:
    """Return a value of numpy, pandas or torch as one of Python; a tuple becomes a list."""
    if isinstance(value, tuple | list):
        return [to_builtin(one) for one in value]
    if not hasattr(value, "tolist"):
        return value
    if isinstance(value, float) or "float" in type(value).__name__:  # float32 has other digits
        return float(str(value))
    return to_builtin(value.tolist())


def _split_chat(messages: Any, what: str, whole: bool | None) -> tuple[str, str]:
    """Return the question and the reply of a conversation of one question.

    Args:
        whole: whether it has both; False if only the question, None if only the reply.
    """
    said: dict[str, list[str]] = {"system": [], "user": [], "assistant": []}
    for message in messages if isinstance(messages, list) else [messages]:
        role = message.get("role", message.get("from")) if isinstance(message, dict) else None
        role = _ROLES.get(str(role), role)
        if role not in said:
            raise _chat_error(f"{what}: {truncate(repr(message), 60)} has no role that kava reads")
        said[role].append(_content(message, what))
    asked, replied = len(said["user"]), len(said["assistant"])
    if (asked, replied) != (whole is not None, whole is not False):
        raise _chat_error(f"{what} has {asked} messages of the user and {replied} of the assistant")
    return "\n".join(said["system"] + said["user"]), "".join(said["assistant"])


def _content(message: Mapping[str, Any], what: str) -> str:
    content = message.get("content", message.get("value"))
    if isinstance(content, list):  # parts, of which only text can be read
        content = [part.get("text") if isinstance(part, dict) else part for part in content]
        texts = [part for part in content if isinstance(part, str)]
        content = "".join(texts) if len(texts) == len(content) else None
    if not isinstance(content, str):
        raise _chat_error(f"{what}: the content of a message is not text; only text is read")
    return content


def _chat_error(problem: str) -> KavaError:
    return KavaError(
        f"{problem}; give one question of the user and one reply of the assistant, after any system"
        " message",
        code="data.bad-chat",
        key="messages",
    )


def _steps_error(where: str, field: str, value: Any) -> KavaError:
    return KavaError(
        f"{where}: '{field}' must be a list of strings or a string, not "
        f"{truncate(repr(value), 60)}",
        code="data.bad-field",
        key=field,
    )


def _field_error(where: str, field: str, must: str, value: Any) -> KavaError:
    shown = truncate(repr(value), 60)
    return KavaError(f"{where}: '{field}' {must}, not {shown}", code="data.bad-field", key=field)


def _answer(value: Any, where: str, field: str) -> str:
    if isinstance(value, int | Decimal) and not isinstance(value, bool):
        value = Decimal(value)
    elif isinstance(value, float) and math.isfinite(value):
        value = Decimal(repr(value))  # the digits as written, without binary noise
    if isinstance(value, Decimal) and value.is_finite():
        return plain_number(value)
    if not isinstance(value, str) or not value.strip():
        raise _field_error(where, field, "must be a number or a string", value)
    return canonical_form(value.strip())


def _is_missing(value: Any) -> bool:
    missing = value is None or type(value).__name__ in ("NAType", "NaTType")  # of pandas
    return missing or (isinstance(value, float) and math.isnan(value))


def _json_list(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a step that begins with a bracket
        return text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def columns_of(options: Mapping[str, Any]) -> tuple[Columns, dict[str, Any]]:
    """Split options into those of the columns and the others."""
    own = {name: options[name] for name in Columns.__dataclass_fields__ if name in options}
    return Columns(**own), {name: value for name, value in options.items() if name not in own}
