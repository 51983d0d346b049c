"""Commands that measure speed and memory (`kava bench`)."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from kava.cli._app import ManyWords, Merge, Revision, Settings, app, examples, make_console

bench_app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Measure speed on random weights and tokens: no Hub, no data.",
    epilog=examples(
        "kava bench train recipes/bench/kava.yaml",
        "kava bench memory recipes/llama1b_aug/kava.yaml --rows 32 64",
    ),
)
app.add_typer(bench_app, name="bench")

Shape = Annotated[
    str | None,
    typer.Option(
        help="shape of the backbone: small, llama-3.2-1b, a folder with config.json, or "
        "llama:hidden_size=256,...; each recipe's own if not given"
    ),
]
Question = Annotated[
    str | None,
    typer.Option(help="tokens of a question, as a number or minimum:maximum; 59:70 if not given"),
]
Reasoning = Annotated[
    str | None, typer.Option(help="tokens of the chain of thought; 41 if not given")
]
OwnQuestion = Annotated[
    str | None, typer.Option(help="tokens of a question, as a number or minimum:maximum")
]
OwnReasoning = Annotated[str | None, typer.Option(help="tokens of the chain of thought")]
Answer = Annotated[str, typer.Option(help="tokens of the answer, including its prompt and EOS")]
RealLengths = Annotated[
    str | None,
    typer.Option(
        help="gsm8k: questions and chains of thought of real lengths, new in each round, instead "
        "of --question and --reasoning; tokens and FLOPs are those of the last round"
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="number of timed rounds")]
WarmUp = Annotated[int, typer.Option(min=0, help="number of warm-up rounds, which are not timed")]


def _check_output(output: Path | None) -> Path | None:
    if output is not None:
        from kava.system.files import check_writable

        check_writable(output)
    return output


Result = Annotated[
    Path | None, typer.Option("--output", "-o", callback=_check_output, help="JSON file to write")
]


@bench_app.command(
    cls=ManyWords,
    epilog=examples(
        "kava bench train recipes/bench/cot.yaml recipes/bench/kava.yaml",
        "kava bench train recipes/bench/kava.yaml --shape llama-3.2-1b -o train.json",
    ),
)
def train(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE", help="YAML file")],
    shape: Shape = None,
    question: Question = None,
    reasoning: Reasoning = None,
    answer: Answer = "8",
    lengths: RealLengths = None,
    repeats: Repeats = 15,
    warm_up: WarmUp = 3,
    settings: Settings = None,
    output: Result = None,
) -> None:
    """Time a training step of each recipe, in turns.

    The work of a step is compared with the minimum that its method needs.
    """
    from kava.bench.command import bench_train

    plan = _plan((question, reasoning, answer), shape, repeats, warm_up, output, lengths)
    bench_train(recipe, settings or [], plan, make_console())


@bench_app.command(
    cls=ManyWords,
    epilog=examples(
        "kava bench generate recipes/bench/cot.yaml recipes/bench/kava.yaml --batch 1 32",
        "kava bench generate runs/mine -o generate.json",
    ),
)
def generate(
    run: Annotated[list[str], typer.Argument(metavar="RUN|RECIPE", help="folder or YAML file")],
    shape: Shape = None,
    question: Question = None,
    reasoning: Reasoning = None,
    answer: Answer = "8",
    lengths: RealLengths = None,
    batch: Annotated[
        list[int] | None, typer.Option(metavar="N...", help="batch sizes; 1 and 32 if not given")
    ] = None,
    repeats: Repeats = 15,
    warm_up: WarmUp = 3,
    merge: Merge = False,
    settings: Settings = None,
    revision: Revision = None,
    output: Result = None,
) -> None:
    """Time answers with a chain of thought, without, and with latents.

    The runs and recipes are timed in turns.
    """
    from kava.bench.command import bench_generate

    plan = _plan((question, reasoning, answer), shape, repeats, warm_up, output, lengths)
    bench_generate(run, settings or [], plan, batch or [1, 32], make_console(), revision, merge)


@bench_app.command(
    cls=ManyWords,
    epilog=examples(
        "kava bench memory recipes/llama1b_aug/kava.yaml --rows 32 64",
        "kava bench memory recipes/llama3b_aug/kava.yaml --set train.gradient_checkpointing=true",
    ),
)
def memory(
    recipe: Annotated[list[str], typer.Argument(metavar="RECIPE", help="YAML file")],
    rows: Annotated[
        list[int] | None,
        typer.Option(metavar="N...", help="micro-batch sizes; the recipe's if not given"),
    ] = None,
    shape: Shape = None,
    question: OwnQuestion = None,
    reasoning: OwnReasoning = None,
    answer: Answer = "8",
    lengths: Annotated[
        str | None, typer.Option(help="gsm8k, unless --question or --reasoning is given")
    ] = None,
    device: Annotated[
        str, typer.Option(help="cuda (bf16 unless the recipe says otherwise) or cpu")
    ] = "cuda",
    settings: Settings = None,
    output: Result = None,
) -> None:
    """Count the memory of a training step, without needing the GPU.

    The step runs on tensors with sizes but without values; the storage that exists at the same time
    is added up. A padded micro-batch is as wide as its longest examples, so the widest of 1,000
    micro-batches of random examples is counted.
    """
    from kava.bench.memory_command import bench_memory

    given = _lengths(question, reasoning, answer, lengths, by_default="gsm8k")
    bench_memory(recipe, settings or [], shape, given, rows or [], device, output, make_console())


def _plan(
    lengths: tuple[str | None, str | None, str],
    shape: str | None,
    repeats: int,
    warm_up: int,
    output: Path | None,
    source: str | None,
) -> Any:
    from kava.bench.command import BenchSettings

    return BenchSettings(shape, _lengths(*lengths, source), repeats, warm_up, output)


def _lengths(
    question: str | None,
    reasoning: str | None,
    answer: str,
    source: str | None,
    by_default: Literal["gsm8k"] | None = None,
) -> Any:
    """Parse lengths; questions and chains of thought have real ones or given ones, not both."""
    from kava.bench.shapes import Lengths, parse_range
    from kava.errors import KavaError, unknown_name

    if source not in (None, "gsm8k"):
        raise unknown_name("--lengths", source, ("gsm8k",), code="cli.unknown-lengths")
    given = {"question": question, "reasoning": reasoning}
    parsed = {name: parse_range(text) for name, text in given.items() if text is not None}
    if source and parsed:
        name = next(iter(parsed))
        raise KavaError(
            f"--{name} cannot be used with --lengths {source}, which gives real lengths",
            code="cli.two-lengths",
            key=f"--{name}",
        )
    ranges: dict[str, Any] = {**parsed, "answer": parse_range(answer)}
    return Lengths(**ranges, source="gsm8k" if source else None if parsed else by_default)
