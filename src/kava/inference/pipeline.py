"""`kava.pipeline`: use a reasoner through the interface of `transformers.pipeline`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import torch

from kava.errors import KavaError, first_line
from kava.reasoning.generate import check_whole_number
from kava.reasoning.open import open_reasoner
from kava.reasoning.reasoner import Reasoner

TASK = "text-generation"
Message = Mapping[str, Any]
Chat = Sequence[Message]


class TextGenerationPipeline:
    """Pipeline from questions to answers, with the output format of transformers' text generation.

    Args:
        model: a reasoner, or what `kava ask` accepts: a run, a checkpoint, a backbone, a Hub name.
        batch_size: number of questions answered together; answers do not depend on it, but
            for rounding (in bf16, two almost equally likely tokens may swap).
        device: where to move the model, as in transformers: `cuda:1`, the index of a GPU, or -1 for
            the CPU. By default, a reasoner is not moved, and a name is opened on the GPU if there
            is one.
        dtype: dtype of the backbone, for a model given by name (`Reasoner.from_pretrained`).

    Raises:
        KavaError: if a model cannot be loaded, the batch size is below 1, the device does not
            exist, or the dtype is not supported or given for a reasoner, which has its own.
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
                "pipeline: dtype is only for a model given by name; load this one with "
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
        """Return the device of the model."""
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
            text_inputs: questions or chats. A single message is a chat. The content of a message
                is a text, or a list of parts `{"type": "text", "text": ...}`.
            return_full_text: whether `generated_text` begins with the question. By default it does,
                as in transformers; for a chat it then contains all messages.
            max_new_tokens: as in `Reasoner.continue_from`; there is no `max_length`.
            options: as in `Reasoner.continue_from` (`do_sample`, `num_return_sequences`, ...), and
                `num_iterations`.

        Returns:
            for one question, a dict with `generated_text` per returned sequence; for several, a
            list of such lists in the same order.

        Raises:
            KavaError: if there is no question, a question is empty, a chat has more than one user
                message, or an option is not supported.
            ValueError: if an option is unknown to `generate` of transformers.
        """
        full = return_full_text is None or return_full_text
        size = self.batch_size if batch_size is None else batch_size
        check_whole_number("pipeline: batch_size", size, 1)
        given, is_single = _inputs(text_inputs)
        questions = [one if isinstance(one, str) else _question(one) for one in given]
        answered = self._answer(questions, given, full, size, max_new_tokens, options)
        return answered[0] if is_single else answered

    def _answer(
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
            reasoning = self.model.think(questions[at : at + size], iterations)
            texts += [one.text for one in self.model.answer(reasoning, max_new_tokens, **options)]
        return [
            [
                {"generated_text": _join(one, text) if full else text}
                for text in texts[i * copies :][:copies]
            ]
            for i, one in enumerate(given)
        ]


#: Arguments of transformers' pipeline that a reasoner already has.
_OWN = {
    "tokenizer": "a reasoner has its own tokenizer, with the three special tokens for latents",
    "config": "the config of the checkpoint is used",
    "torch_dtype": "use dtype",
    "device_map": "use device",
    "model_kwargs": "load the model with Reasoner.from_pretrained and pass it",
    "revision": "load the model with Reasoner.from_pretrained(name, revision=...) and pass it",
}


def pipeline(
    task: str = TASK, model: Reasoner | str | Path | None = None, **options: Any
) -> TextGenerationPipeline:
    """Create a text generation pipeline, as in transformers.

    For example, `pipeline("text-generation", model="runs/mine")("What is ...?")`.

    Args:
        options: `batch_size`, `device`, `dtype`. Options of generation are passed in the call.

    Raises:
        KavaError: if the task is another one, the model is missing or cannot be loaded, or an
            option is not supported.
    """
    if task != TASK:
        raise KavaError(
            f"pipeline: task '{task}' is not supported by a reasoner; use '{TASK}'",
            code="inference.unknown-task",
            key=str(task),
        )
    if model is None:
        raise KavaError(
            "pipeline: model is missing; give a run, a checkpoint, or a name on the Hub",
            code="inference.no-model",
            key="model",
        )
    for name in [name for name, value in options.items() if name in _OWN and value is None]:
        del options[name]
    for name in options:
        if name not in ("batch_size", "device", "dtype"):
            instead = _OWN.get(name, "pass generation options when calling the pipeline")
            raise KavaError(
                f"pipeline: {name} is not supported here; {instead}",
                code="inference.misplaced-option",
                key=name,
            )
    return TextGenerationPipeline(model, **options)


def _move(model: Reasoner, device: int | str | torch.device) -> None:
    place = "cpu" if device == -1 else f"cuda:{device}" if type(device) is int else device
    try:
        model.to(place)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA raises AssertionError
        raise KavaError(
            f"pipeline: device {device!r} cannot be used: {first_line(error)}",
            code="inference.no-device",
            key=str(device),
        ) from None


def _inputs(text_inputs: Any) -> tuple[list[str | Chat], bool]:
    """Return questions and chats as a list, and whether a single one was given."""
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
            f"a question must be a string or a list with one message, not {chat!r}",
            code="reasoning.not-a-question",
            key=type(chat).__name__,
        )
    if len(messages) != 1 or messages[0].get("role") != "user":
        raise KavaError(
            "a reasoner answers one question at a time, so a chat must have exactly one message, "
            f"with the role 'user' (got: {', '.join(str(m.get('role')) for m in messages)})",
            code="inference.not-one-question",
        )
    content = messages[0].get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list | tuple) or not all(
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
        for part in parts
    ):
        raise KavaError(
            "the content of a message must be a string or a list of parts "
            f'{{"type": "text", "text": ...}}; got {content!r}',
            code="inference.bad-content",
            key="content",
        )
    return "".join(part["text"] for part in parts)


def _join(given: str | Chat, text: str) -> Any:
    if isinstance(given, str):
        return f"{given} {text}"
    return [*given, {"role": "assistant", "content": text}]
