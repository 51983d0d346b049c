"""Tokenize texts with a time limit, since the patterns of a tokenizer may backtrack exponentially.

A pattern of tokenizer.json with nested quantifiers, such as `(a+)+$`, takes exponential time on
some texts. The regular expressions of the tokenizers library give up after ten million steps, and
the library then panics: an error that is no `Exception`. Below that limit, one text may still take
minutes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import Any

from kava.errors import KavaError

# A tokenizer needs some millionths of a second for a character; a busy machine more.
SECONDS, SECONDS_PER_CHARACTER = 30.0, 1e-4

#: Texts on which patterns with nested quantifiers fail, if they are meant for usual texts.
PROBES = tuple(
    part * 40 + end
    for part in ("a", "A", "1", " ", "\n", ".", "é", "一", "a ", "1,")
    for end in "!x"
)


class Panic(RuntimeError):
    """A panic of a library written in Rust, as an exception that handlers of errors catch."""


@contextmanager
def catching_panics() -> Iterator[None]:
    """Raise `Panic` for a panic of Rust, whose own exception is no subclass of `Exception`."""
    try:
        yield
    except Exception:
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise Panic(str(error)) from None


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of each text, without special tokens.

    The text of a special token inside a text is tokenized as ordinary text. The tokenizer runs in a
    thread, since Rust cannot be interrupted; one that is too slow goes on in the background until
    it is done or the process ends.

    Raises:
        KavaError: the tokenizer panics, or takes longer than 30 seconds and 0.1 ms for each
            character.
    """
    if not texts:
        return []
    done: list[list[list[int]]] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with catching_panics():
                found = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
            done.append(found["input_ids"])
        except BaseException as error:
            failed.append(error)

    seconds = SECONDS + SECONDS_PER_CHARACTER * sum(map(len, texts))
    thread = Thread(target=work, name="kava-encode", daemon=True)
    thread.start()
    thread.join(seconds)
    if failed and not isinstance(failed[0], Panic):
        raise failed[0]
    if not done:
        raise _tokenizer_error(tokenizer, failed[0] if failed else None, seconds)
    return done[0]


def _tokenizer_error(tokenizer: Any, panic: BaseException | None, seconds: float) -> KavaError:
    folder = str(getattr(tokenizer, "name_or_path", "") or "tokenizer")
    problem = f"panicked ({panic})" if panic else f"took longer than {seconds:.0f} s for a text"
    return KavaError(
        f"tokenizer of {folder}: it {problem}; a regular expression in its tokenizer.json probably "
        "has nested quantifiers, such as (a+)+; use a tokenizer without them",
        code="backbones.tokenizer-pattern",
        key=folder,
    )
