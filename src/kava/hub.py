"""Whether the Hugging Face Hub answers, asked once and quickly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_offline: ContextVar[bool] = ContextVar("kava_offline", default=False)


@contextmanager
def offline() -> Iterator[None]:
    """Inside the block nothing is asked of the Hub; what was downloaded before is still found."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


def reachable(name: str, kind: str) -> bool:
    """Ask for a repository's description, without the retries of the loading libraries.

    Unreachable, they would try again for half a minute before looking into their own cache.

    Args:
        name: `owner/name`.
        kind: `model` or `dataset`.
    """
    if _offline.get():
        return False
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=10)
    except HfHubHTTPError:  # the Hub answered; what it refuses is said by the download itself
        return True
    except Exception:  # no network, a proxy, offline mode: each library version has its own class
        return False
    return True
