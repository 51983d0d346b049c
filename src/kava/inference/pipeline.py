"""`kava.pipeline`: a reasoner behind the calls that `transformers.pipeline` has."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from kava.errors import KavaError
from kava.reasoning.generate import check_whole_number
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner

TASK = "text-generation"
Message = Mapping[str, Any]
Chat = Sequence[Message]


class TextGenerationPipeline:
    """Questions to answers, in the form that transformers' pipeline of that name gives.

    Args:
        model: a reasoner, or what `kava ask` takes: a run, a checkpoint, a backbone, a Hub name.
        batch_size: questions answered together; answers do not depend on it.
        device: where the model is moved, as transformers takes it: `cuda:1`, a number of a GPU,
            -1 for the CPU. If not given, a reasoner stays where it is and a name is opened on the
            GPU where there is one.
        dtype: of the backbone that a name is opened with (`Reasoner.from_pretrained`).

    Raises:
        KavaError: a model that cannot be had, a batch size below 1, a device that is not there, a
            dtype that is not possible, or one for a reasoner, which has its own.
    """

    def __init__(
        self,
        model: Reasoner | str | Path,
        batch_size: int = 1,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
    ):
        check_whole_number("pipeline: batch_size", batch_size, 1)
        if not isinstance(model, Reasoner | str | os.PathLike):
            raise KavaError(
                f"pipeline: model is a {type(model).__name__}; give a Reasoner, a folder, or a "
                "name on the Hub",
                code="inference.not-a-model",
                key=type(model).__name__,
            )
        if not isinstance(model, Reasoner):
            model = open_reasoner(os.fspath(model), dtype=dtype)
        elif dtype is not None:
            raise KavaError(
                "pipeline: dtype is for a model given by name; open this one with "
                "Reasoner.from_pretrained(..., dtype=...)",
                code="inference.misplaced-dtype",
                key="dtype",
            )
        self.model = model
        if device is not None:
            _move(self.model, device)
        self.model.eval()
        self.tokenizer, self.batch_size = self.model.tokenizer, batch_size

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    @overload
    def __call__(self, text_inputs: str | Message | Chat, **options: Any) -> list[dict]: ...

    @overload
    def __call__(self, text_inputs: Sequence[str | Chat], **options: Any) -> list[list[dict]]: ...

    def __call__(
        self,
        text_inputs: str | Message | Chat | Sequence[str | Chat],
        return_full_text: bool | None = None,
        batch_size: int | None = None,
        max_new_tokens: int = 256,
        **options: Any,
    ) -> list[Any]:
        """Answer a question, several, a chat of one user message, or several such chats.

        Args:
            text_inputs: the content of a message is a text, or parts `{"type": "text", "text":
                ...}`. A message alone is a chat.
            return_full_text: whether `generated_text` begins with the question. As in
                transformers, it does where nothing is said; a chat's holds all its messages then.
            max_new_tokens: as `Reasoner.continue_from` takes it; there is no `max_length`.
            options: as `Reasoner.continue_from` takes them (`do_sample`, `num_return_sequences`,
                ...), and `num_iterations`.

        Returns:
            for one question a dict per returned sequence, with `generated_text`; for several a
            list of such lists, in their order.

        Raises:
            KavaError: no question, an empty one, a chat of more than one user message, an option
                that is not possible.
            ValueError: an option that `generate` of transformers does not know.
        """
        full = return_full_text is None or return_full_text
        size = self.batch_size if batch_size is None else batch_size
        check_whole_number("pipeline: batch_size", size, 1)
        given, alone = _inputs(text_inputs)
        questions = [one if isinstance(one, str) else _question(one) for one in given]
        answered = self._answered(questions, given, full, size, max_new_tokens, options)
        return answered[0] if alone else answered

    def _answered(
        self,
        questions: list[str],
        given: list[str | Chat],
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


#: What transformers' pipeline takes and a reasoner brings along.
_OWN = {
    "tokenizer": "a reasoner has its own, with the three tokens that it thinks with",
    "config": "it is the checkpoint's",
    "torch_dtype": "give dtype",
    "device_map": "give device",
    "model_kwargs": "open the model with Reasoner.from_pretrained and give that",
    "revision": "open the model with Reasoner.from_pretrained(name, revision=...) and give that",
}


def pipeline(
    task: str = TASK, model: Reasoner | str | Path | None = None, **options: Any
) -> TextGenerationPipeline:
    """`pipeline("text-generation", model="runs/mine")("What is ...?")`, as in transformers.

    Args:
        options: `batch_size`, `device`, `dtype`. Those of an answer are given in the call.

    Raises:
        KavaError: another task, no model, one that cannot be had, or an option that is not
            possible.
    """
    if task != TASK:
        raise KavaError(
            f"pipeline: task '{task}' is not possible; a reasoner does '{TASK}'",
            code="inference.unknown-task",
            key=str(task),
        )
    if model is None:
        raise KavaError(
            "pipeline: model is missing; a run, a checkpoint, or a name on the Hub",
            code="inference.no-model",
            key="model",
        )
    for name in [name for name, value in options.items() if name in _OWN and value is None]:
        del options[name]
    for name in options:
        if name not in ("batch_size", "device", "dtype"):
            instead = _OWN.get(name, "options of an answer are given in the call")
            raise KavaError(
                f"pipeline: {name} cannot be given here; {instead}",
                code="inference.misplaced-option",
                key=name,
            )
    return TextGenerationPipeline(model, **options)


def _move(model: Reasoner, device: int | str | torch.device) -> None:
    place = "cpu" if device == -1 else f"cuda:{device}" if type(device) is int else device
    try:
        model.to(place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts that it has it
        why = str(error).strip().partition("\n")[0]
        raise KavaError(
            f"pipeline: device {device!r} cannot be used: {why}",
            code="inference.no-device",
            key=str(device),
        ) from None


def _inputs(text_inputs: Any) -> tuple[list[str | Chat], bool]:
    """Questions and chats as a list, and whether one was given alone."""
    if isinstance(text_inputs, str):
        return [text_inputs], True
    if isinstance(text_inputs, Mapping):
        return [[text_inputs]], True
    given = list(text_inputs)
    if given and isinstance(given[0], Mapping):
        return [given], True
    return given, False


def _question(chat: Chat) -> str:
    messages = list(chat) if isinstance(chat, list | tuple) else []
    if not all(isinstance(message, Mapping) for message in messages) or not messages:
        raise KavaError(
            f"a question is a text, or a list with one message, not {chat!r}",
            code="reasoning.not-a-question",
            key=type(chat).__name__,
        )
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise KavaError(
            "a reasoner answers one question on its own: a chat has exactly one message here, of "
            f"the role 'user' (got: {', '.join(str(m.get('role')) for m in messages)})",
            code="inference.not-one-question",
        )
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(map(_is_text, parts)):
        raise KavaError(
            "the content of a message is a text, or a list of parts "
            f'{{"type": "text", "text": ...}}; got {content!r}',
            code="inference.bad-content",
            key="content",
        )
    return "".join(part["text"] for part in parts)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _joined(given: str | Chat, text: str, full: bool) -> Any:
    if not full:
        return text
    return f"{given} {text}" if isinstance(given, str) else [*given, _said(text)]


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}
