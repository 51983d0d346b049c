"""`kava.pipeline`: a reasoner behind the calls that `transformers.pipeline` has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

from kava.errors import KavaError
from kava.model import Reasoner
from kava.run import open_reasoner

TASK = "text-generation"
Message = Mapping[str, str]


class TextGenerationPipeline:
    """Questions to answers, in the form that transformers' pipeline of that name gives.

    Args:
        model: a reasoner, or what `kava ask` takes: a run, a checkpoint, a backbone, a Hub name.
        batch_size: questions answered together; answers do not depend on it.
    """

    def __init__(self, model: Reasoner | str, batch_size: int = 1):
        self.model = open_reasoner(model) if isinstance(model, str) else model
        self.model.eval()
        self.tokenizer, self.batch_size = self.model.tokenizer, batch_size

    @overload
    def __call__(self, text_inputs: str | Sequence[Message], **options: Any) -> list[dict]: ...

    @overload
    def __call__(self, text_inputs: Sequence[str], **options: Any) -> list[list[dict]]: ...

    def __call__(
        self,
        text_inputs: str | Sequence[str] | Sequence[Message],
        return_full_text: bool | None = None,
        batch_size: int | None = None,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> list[Any]:
        """Answer a question, several, or a chat of one user message.

        Args:
            return_full_text: whether `generated_text` begins with the question. As in
                transformers, it does where nothing is said; a chat's holds all its messages then.
            options: as `Reasoner.continue_from` takes them (`do_sample`, `num_return_sequences`,
                ...), and `num_iterations`.

        Returns:
            for one question a dict per returned sequence, with `generated_text`; for several a
            list of such lists, in their order.

        Raises:
            KavaError: no question, an empty one, or a chat of more than one user message.
        """
        full = return_full_text is None or return_full_text
        if isinstance(text_inputs, str):
            return self._answered([text_inputs], [text_inputs], full, 1, max_new_tokens, options)[0]
        given = list(text_inputs)
        if given and isinstance(given[0], Mapping):
            question = _question(given)
            return self._answered([question], [given], full, 1, max_new_tokens, options)[0]
        size = batch_size or self.batch_size
        return self._answered(given, given, full, size, max_new_tokens, options)

    def _answered(
        self,
        questions: list[str],
        given: list[Any],
        full: bool,
        size: int,
        max_new_tokens: int,
        options: dict[str, Any],
    ) -> list[list[dict[str, Any]]]:
        copies = options.get("num_return_sequences") or 1
        iterations = options.pop("num_iterations", None)
        texts: list[str] = []
        for at in range(0, max(len(questions), 1), size):
            thinking = self.model.think(questions[at : at + size], iterations)
            texts += [one.text for one in self.model.answer(thinking, max_new_tokens, **options)]
        return [
            [{"generated_text": _joined(one, text, full)} for text in texts[i * copies :][:copies]]
            for i, one in enumerate(given)
        ]


def pipeline(
    task: str = TASK, model: Reasoner | str | None = None, **options: Any
) -> TextGenerationPipeline:
    """`pipeline("text-generation", model="runs/mine")("What is ...?")`, as in transformers.

    Raises:
        KavaError: another task, no model, or a model that cannot be had.
    """
    if task != TASK:
        raise KavaError(f"pipeline: task '{task}' is not possible; a reasoner does '{TASK}'")
    if model is None:
        raise KavaError("pipeline: model is missing; a run, a checkpoint, or a name on the Hub")
    return TextGenerationPipeline(model, **options)


def _question(messages: Iterable[Message]) -> str:
    messages = list(messages)
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise KavaError(
            "a reasoner answers one question on its own: a chat has exactly one message here, of "
            f"the role 'user' (got: {', '.join(str(m.get('role')) for m in messages)})"
        )
    return messages[0].get("content", "")


def _joined(given: Any, text: str, full: bool) -> Any:
    if not full:
        return text
    return f"{given} {text}" if isinstance(given, str) else [*given, _said(text)]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
