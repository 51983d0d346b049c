"""Commands that serve models to others: `kava serve`, `kava demo` and `kava export`."""

from pathlib import Path
from typing import Annotated

import typer

from kava.cli._app import Dtype, Merge, Revision, TaskFile, app, examples, make_console
from kava.errors import KavaError, unknown_name

AllowHost = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME", help="additional host name to accept in the Host header; may be repeated"
    ),
]


@app.command(
    epilog=examples(
        "kava serve runs/mine --port 8000",
        "kava serve runs/mine --host 0.0.0.0 --api-key KEY --allow-host example.org",
    )
)
def serve(
    run: str,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None, typer.Option(envvar="KAVA_API_KEY", help="key that clients must send")
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="file with the key, to keep it out of process lists")
    ] = None,
    allow_no_key: Annotated[
        bool, typer.Option("--allow-no-key", help="allow access without a key on any address")
    ] = False,
    allow_host: AllowHost = None,
    name: Annotated[
        str | None, typer.Option(help="name of the model; the run's if not given")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="new location of the backbone, if it has moved")
    ] = None,
    merge: Merge = False,
    revision: Revision = None,
    dtype: Dtype = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="maximum number of questions per batch")
    ] = 32,
    delay_ms: Annotated[
        float, typer.Option(min=0, max=1000, help="milliseconds to wait for more questions")
    ] = 2.0,
    queue_length: Annotated[
        int, typer.Option(min=1, help="maximum number of waiting questions")
    ] = 256,
    max_question_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
    max_iterations: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="maximum number of latent iterations, also for requests with auto; twice the "
            "recipe's if not given",
        ),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1024)] = 1_000_000,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="maximum number of seconds for an answer")
    ] = 60.0,
) -> None:
    """Answer questions over an OpenAI-compatible HTTP API."""
    from kava.serve.command import Address
    from kava.serve.command import serve as start
    from kava.serve.limits import Limits

    key = _secret("--api-key", api_key, api_key_file)
    address = Address(host, port, key, allow_no_key, tuple(allow_host or ()))
    limits = Limits(
        question_tokens=max_question_tokens,
        new_tokens=max_new_tokens,
        num_iterations=max_iterations,
        body_bytes=max_body_bytes,
        timeout=timeout,
        batch_size=batch_size,
        delay=delay_ms / 1000,
        queue_length=queue_length,
    )
    start(run, address, limits, name, backbone, make_console(), merge, revision, dtype)


@app.command(epilog=examples("kava demo", "kava demo runs/mine --written runs/cot --port 7860"))
def demo(
    run: Annotated[
        str | None, typer.Argument(help="run or checkpoint; the quickstart's KaVa if not given")
    ] = None,
    written: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER", help="model to compare with, which writes a chain of thought"
        ),
    ] = None,
    task: Annotated[str | None, typer.Option(help="task whose questions can be chosen")] = None,
    file: TaskFile = None,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 chooses any free port")] = 7860,
    password: Annotated[
        str | None, typer.Option(envvar="KAVA_DEMO_PASSWORD", help="password of the user 'kava'")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="file with the password, to keep it out of process lists")
    ] = None,
    allow_no_password: Annotated[
        bool,
        typer.Option("--allow-no-password", help="allow access without a password on any address"),
    ] = False,
    allow_host: AllowHost = None,
    backbone: Annotated[
        str | None, typer.Option(help="new location of the run's backbone, if it has moved")
    ] = None,
    revision: Revision = None,
    max_question_tokens: Annotated[int, typer.Option(min=1)] = 1024,
    max_new_tokens: Annotated[int, typer.Option(min=1)] = 256,
) -> None:
    """Serve a web page to compare chain of thought and latents."""
    from kava.demo.command import PageAddress
    from kava.demo.command import serve as start
    from kava.demo.questions import PageLimits

    word = _secret("--password", password, password_file)
    address = PageAddress(host, port, word, allow_no_password, tuple(allow_host or ()))
    limits = PageLimits(max_question_tokens, max_new_tokens)
    start(run, written, address, limits, task, file, backbone, make_console(), revision)


@app.command(
    epilog=examples(
        "kava export runs/mine -o exported",
        "kava export checkpoints/quickstart/kava -o exported --format gguf",
    )
)
def export(
    run: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="new folder to write")],
    backbone: Annotated[
        str | None, typer.Option(help="new location of the backbone, if it has moved")
    ] = None,
    revision: Revision = None,
    format: Annotated[
        str, typer.Option(help="safetensors; or gguf, which also writes the backbone for llama.cpp")
    ] = "safetensors",
) -> None:
    """Write a run as one folder that transformers and engines can load."""
    if format not in (known := ("safetensors", "gguf")):
        raise unknown_name("--format", format, known, code="cli.unknown-format")
    from kava.reasoning.export import export as write
    from kava.reasoning.reasoner import Reasoner
    from kava.system.text import printable

    reasoner = Reasoner.from_pretrained(run, backbone, revision=revision)
    folder = write(reasoner, output, gguf=format == "gguf")
    print(printable(f"written: {folder}"))


def _secret(option: str, given: str | None, file: Path | None) -> str | None:
    """Return a secret from its option, or from the first line of a file.

    Raises:
        KavaError: both are given, or the file cannot be read as text.
    """
    if file is None:
        return given
    if given is not None:
        raise KavaError(
            f"{option}-file: {option} or its environment variable is set too; use only one of them",
            code="cli.secret-twice",
            key=f"{option}-file",
        )
    try:
        with file.open(encoding="utf-8") as opened:
            return opened.readline(10_000).rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise KavaError(
            f"{option}-file {file}: cannot be read: {reason}",
            code="cli.secret-not-read",
            key=f"{option}-file",
        ) from None
