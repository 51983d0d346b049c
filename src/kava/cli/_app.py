"""The typer application, and options shared by several commands."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar

import typer
from typer.core import TyperCommand

from kava.errors import KavaError


def examples(*lines: str) -> str:
    """Return the end of a command's `--help`: examples, one line each."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=examples(
        'kava ask checkpoints/quickstart/kava "Ann has 4 pens and buys 3. How many?"',
        "kava train recipes/quickstart/kava.yaml -o runs/mine",
    ),
)


@app.callback()
def options(
    cpu: Annotated[
        bool, typer.Option("--cpu", help="compute on the CPU, also if there is a GPU")
    ] = False,
) -> None:
    """Train, evaluate and ask language models that reason in latent tokens."""
    if cpu:
        from kava.system import distributed

        distributed.request_cpu()


Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="such as train.steps=100")
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="run folder to write")]
Resume = Annotated[bool, typer.Option("--resume", help="continue from the last checkpoint")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE...", help="override for every recipe"),
]
Merge = Annotated[
    bool, typer.Option("--merge", help="merge a LoRA adapter into its backbone, which is faster")
]
TaskFile = Annotated[str | None, typer.Option(help="local copy of the task's rows")]
TaskFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--file", help="local copy of the task's rows; for several tasks, one for each, in order"
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="branch, tag or commit of a model on the Hugging Face Hub")
]
Dtype = Annotated[
    str | None,
    typer.Option(
        help="bfloat16, float32 or auto, which answers as the recipe trains; on CPUs, float32 is "
        "often faster"
    ),
]
Limit = Annotated[int | None, typer.Option(min=1, help="use only the first rows of the task")]


class ManyWords(TyperCommand):
    """Command class whose list options take all following words of their kind.

    So `--seeds`, `--set`, `--steps` and others can be given as in `--seeds 42 123 456`, which is
    the same as `--seeds 42 --seeds 123 --seeds 456`.
    """

    kinds: ClassVar[dict[str, str]] = {
        "--seeds": r"\d+",
        "--batch": r"\d+",
        "--rows": r"\d+",
        "--gpus": r"\d+",
        "--gpu-memory": r"\d+(\.\d+)?",
        "--measured": r"(?!-).+\.json",
        "--set": r"[\w.]+=.*",
        "--steps": r"(?!-).+",
    }

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat the option before each further word that belongs to it."""
        words: list[str] = []
        for word in args:
            option = words[-2] if len(words) > 1 else None
            more = option in self.kinds and re.fullmatch(self.kinds[option], word, re.DOTALL)
            words.extend([option, word] if more else [word])
        return super().parse_args(ctx, words)


class QuestionCommand(ManyWords):
    """Command class that takes a question which begins with a minus, such as `-5 + 3 = ?`.

    A word is one if it has a blank, or a number behind the minus, and is no option of the command
    and no value of one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the words, where a question that begins with a minus is not taken for an option."""
        known = {name: param for param in self.params for name in param.opts}
        valued = {name for name, param in known.items() if not getattr(param, "is_flag", False)}
        words: list[str] = []
        for word in args:
            asked = re.match(r"-\S*\s|-[\d.$€£(]", word) and word.split("=")[0] not in known
            value = words and words[-1] in valued and words[-1].startswith("-")
            words.append(_HIDDEN + word if asked and not value and "--" not in words else word)
        rest = super().parse_args(ctx, words)
        ctx.params = {name: _unhide(value) for name, value in ctx.params.items()}
        return rest


_HIDDEN = "\0"  # no word of a command line can have it


def _unhide(value: Any) -> Any:
    if isinstance(value, list):
        return [_unhide(one) for one in value]
    return value.removeprefix(_HIDDEN) if isinstance(value, str) else value


def names(text: str | None, option: str = "--task") -> list[str]:
    """Split names separated by commas, as `--task` takes them; empty if the option is not given.

    Raises:
        KavaError: a name is empty.
    """
    found = [] if text is None else [name.strip() for name in text.split(",")]
    if not all(found):
        raise KavaError(
            f"{option} '{text}': a name is empty; pass one name, or several separated by commas",
            code="cli.empty-name",
            key=option,
        )
    return found


def iterations_or_auto(text: str) -> Any:
    """Read a number of iterations T, or `auto`.

    Raises:
        KavaError: it is neither.
    """
    if text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise KavaError(
            f"--iterations {text}: give a whole number from 0 on, or auto",
            code="cli.bad-iterations",
            key="--iterations",
        )
    return int(text)


#: T, or `auto`; typer converts the text with `iterations_or_auto`.
Iterations = Annotated[
    Any,
    typer.Option(
        parser=iterations_or_auto,
        metavar="T|auto",
        help="number of iterations T, or auto: until the latents no longer change; the recipe's T "
        "if not given",
    ),
]


def make_console(quiet: bool = False, stderr: bool = False) -> Any:
    """Return the console of a command; with several processes, only the main one prints.

    Args:
        stderr: whether it is standard error, for what is no part of an answer or a table.
    """
    from kava.system import distributed
    from kava.system.text import PlainConsole

    return PlainConsole(quiet=quiet or not distributed.is_main(), stderr=stderr, soft_wrap=True)
