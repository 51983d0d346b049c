"""The command `kava demo`: load both models and serve the web page."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console

from kava.errors import KavaError, install
from kava.quickstart import BACKBONE, CHECKPOINT
from kava.reasoning.open import open_reasoner, print_device
from kava.serve.command import bind, is_loopback, listen
from kava.serve.hosts import Hosts, check_names

if TYPE_CHECKING:
    import uvicorn
    from fastapi import FastAPI

    from kava.demo.page import Demo, PageModel
    from kava.demo.questions import PageLimits

USER = "kava"


@dataclass(frozen=True)
class PageAddress:
    """Where the page is served, who may open it, and which additional host names it accepts."""

    host: str = "127.0.0.1"
    port: int = 7860
    password: str | None = None
    allow_no_password: bool = False
    allow_hosts: Sequence[str] = ()

    def check(self) -> None:
        """Check the address: without a password, only this machine can open the page by default.

        Anybody who can open the page can use the models.

        Raises:
            KavaError: an address other than loopback without a password, an empty password, or an
                invalid host name.
        """
        check_names("demo", self.allow_hosts)
        if self.password is not None and not self.password.strip():
            raise KavaError(
                "demo: the password is empty", code="demo.empty-password", key="--password"
            )
        if self.password is None and not self.allow_no_password and not is_loopback(self.host):
            raise KavaError(
                f"demo: {self.host} can be reached from other machines; set --password (or the "
                "environment variable KAVA_DEMO_PASSWORD), or allow access without a password by "
                "--allow-no-password",
                code="demo.no-password",
                key="--password",
            )


def serve(
    run: str | None,
    written: str | None,
    address: PageAddress,
    limits: PageLimits,
    task: str | None,
    file: str | None,
    backbone: str | None,
    console: Console,
    revision: str | None = None,
) -> None:
    """Load both models and serve the page until interrupted.

    Args:
        run: the model whose latents are shown; the quickstart's KaVa if not given.
        written: the model that writes its chain of thought; if not given, the quickstart's
            backbone, for a model made from it.
        revision: revision of `run` on the Hub.

    Raises:
        KavaError: an address that needs a password or cannot be used, models that cannot be loaded
            or do not fit, or examples that cannot be loaded.
    """
    address.check()
    try:
        from kava.demo.page import Demo, PageModel
    except ImportError as error:
        raise KavaError(
            f"demo requires additional libraries ({error.name}); {install('demo')}",
            code="demo.not-installed",
            key=error.name,
        ) from None
    from kava.demo.questions import example_questions

    with bind("demo", address.host, address.port) as listening:
        thinker = PageModel(
            open_reasoner(run or CHECKPOINT, backbone, revision=revision), run or CHECKPOINT
        )
        written = written or _cot_model_of(thinker)
        writer = PageModel(open_reasoner(written), written)
        if writer.reasoner.method.uses_latents:
            raise KavaError(
                f"demo: --written {written}: method '{writer.reasoner.recipe.method}' reasons in "
                "latents; use a run of cot, or a backbone",
                code="demo.writer-with-latents",
                key="--written",
            )
        pick = example_questions(thinker.reasoner.recipe, task, file)
        for model in (thinker, writer):
            print_device(model.reasoner, 1, console, model.name)
        demo = Demo(thinker, writer, pick, limits)
        demo.warm_up()
        listen("demo", listening)
        host, port = listening.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        console.print(
            f"{thinker.name} and {writer.name} at http://{shown}:{port}"
            + (f", user {USER} with the password" if address.password else "")
            + "; Ctrl-C stops",
            highlight=False,
            markup=False,
        )
        with suppress(KeyboardInterrupt):
            hosts = Hosts(address.host, address.allow_hosts, host)
            server(demo, address, hosts).run(sockets=[listening])


def server(demo: Demo, address: PageAddress, hosts: Hosts) -> uvicorn.Server:
    """Return the HTTP server of the page, not yet running."""
    import uvicorn

    # Where no event loop is running, gradio creates some and never closes them.
    app = asyncio.run(_build_app(demo, address, hosts))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=2,
        )
    )


async def _build_app(demo: Demo, address: PageAddress, hosts: Hosts) -> FastAPI:
    """Build the FastAPI application.

    It makes no external requests: no telemetry, no tunnel, no fonts or scripts from elsewhere. It
    gives no access to local files, see `PageMiddleware`.
    """
    import gradio
    from fastapi import FastAPI

    from kava.demo.middleware import PageMiddleware
    from kava.demo.page import CSS, build, theme

    app = FastAPI(title="kava demo", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(PageMiddleware, hosts=hosts)
    page = build(demo)
    page.has_launched = True  # else gradio copies any path in a request into its cache, unchecked
    return gradio.mount_gradio_app(
        app,
        page,
        path="/",
        auth=(USER, address.password) if address.password else None,
        theme=theme(),
        css_paths=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,  # the page has no file uploads
    )


def _cot_model_of(thinker: PageModel) -> str:
    """Return the model that writes the chain of thought, known only for the quickstart's backbone.

    Raises:
        KavaError: the model was made from another backbone, for which no such model is known.
    """
    name = thinker.reasoner.identity["name"]
    if name == BACKBONE:
        return BACKBONE
    raise KavaError(
        f"demo: {thinker.name} was trained from {name}; use --written FOLDER to choose the model "
        "that writes a chain of thought: a finished run of cot, or a backbone",
        code="demo.no-writer",
        key="--written",
    )
