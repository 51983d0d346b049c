"""A real headless browser for pages: Chromium of this machine, driven by playwright.

Without one, tests that ask for `browser_page` are skipped and say why; with KAVA_NEED_BROWSER=1
they fail.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: Nothing is asked of the network, not even by the browser for itself.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@dataclass
class Watched:
    """A page of the browser, and what went wrong on it.

    errors: of its scripts, and what it wrote to the console as an error or a warning.
    requests: addresses that it asked for, its own first.   failed: those that it did not get.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def open(self, file: Path, width: int = 1280, height: int = 900) -> Any:
        """Open a file in a window of that size; returns playwright's page."""
        self.page.set_viewport_size({"width": width, "height": height})
        self.page.goto(file.resolve().as_uri())
        return self.page


@pytest.fixture(scope="module")
def browser():
    """One browser for a test file, with a profile of its own that is thrown away."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        _without("no chromium on this machine")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("playwright is not installed")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture
def browser_page(browser):
    """A new page in a context of its own; see `Watched`."""
    context = browser.new_context()
    watched = Watched(context.new_page())
    page = watched.page
    page.set_default_timeout(10_000)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on(
        "console",
        lambda said: watched.errors.append(said.text) if said.type in ("error", "warning") else 0,
    )
    page.on("request", lambda request: watched.requests.append(request.url))
    page.on("requestfailed", lambda request: watched.failed.append(request.url))
    yield watched
    context.close()


def _without(reason: str) -> None:
    if os.environ.get("KAVA_NEED_BROWSER") == "1":
        pytest.fail(f"{reason}, and KAVA_NEED_BROWSER=1 asks for a browser")
    pytest.skip(reason)
