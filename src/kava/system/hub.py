"""The Hugging Face Hub: whether it answers, what lies there, and bringing it here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from kava.errors import KavaError


class NotAvailable(KavaError):
    """A folder or repository that is neither here nor on the Hub.

    told: its name and why, without what to do about it, which depends on who asked for it.
    """

    def __init__(
        self, message: str, told: str, *, code: str = "system.not-had", key: str | None = None
    ):
        super().__init__(message, code=code, key=key)
        self.told = told


_offline: ContextVar[bool] = ContextVar("kava_offline", default=False)


@dataclass(frozen=True)
class Download:
    """Something of the Hub that lies on this machine now. `what`: `backbone`, `split 'train'`."""

    name: str
    what: str
    folder: Path
    bytes: int


_found: ContextVar[list[Download] | None] = ContextVar("kava_found", default=None)


@contextmanager
def recording_downloads() -> Iterator[list[Download]]:
    """Inside the block what is loaded from the Hub, or from its copy here, is added to the list."""
    found: list[Download] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def record_download(name: str, what: str, files: Iterable[Path]) -> None:
    """Say that something was loaded; for those who ask (`noting`)."""
    found, files = _found.get(), list(files)
    if found is not None and files:
        size = sum(file.stat().st_size for file in files)
        found.append(Download(name, what, files[0].parent, size))


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


def is_name(name: str) -> bool:
    """Whether a text has the form `owner/name` of a repository, and is no path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def download(name: str, revision: str | None, patterns: list[str], what: str, instead: str) -> Path:
    """A model repository's files in the local cache; asked for only where the Hub answers.

    Args:
        patterns: of files; of others nothing is downloaded.
        what: is looked for, and `instead`: what to do, for messages.

    Raises:
        NotHad: the Hub does not give it and there is no copy here.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["original/*"],
            local_files_only=not reachable(name, "model"),
        )
    except LocalEntryNotFoundError:
        why = "the Hugging Face Hub cannot be reached and there is no local copy"
        raise _nowhere(name, why, what, instead) from None
    except (OSError, ValueError, HfHubHTTPError) as error:
        line = str(error).strip().split("\n")[0][:300]
        raise _nowhere(name, line, what, instead) from None
    record_download(name, what, sorted(file for file in Path(folder).iterdir() if file.is_file()))
    return Path(folder)


def _nowhere(name: str, why: str, what: str, instead: str) -> NotAvailable:
    told = f"{name}: no such folder here, and as a name on the Hub it cannot be had: {why}"
    return NotAvailable(f"{what} {told}; {instead}", told, code="system.not-on-hub", key=name)


def has_file(name: str, file: str) -> bool:
    """Whether a model repository holds a file; of an unreachable Hub, the local cache is asked."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, file), str):
            return True
        return reachable(name, "model") and HfApi().file_exists(name, file)
    except (HfHubHTTPError, HFValidationError):  # gated, or no such name: loading it will say so
        return False


def revision(name: str, kind: str) -> str | None:
    """The newest commit of a repository; None where the Hub does not answer."""
    if not reachable(name, kind):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=10).sha
    except HfHubHTTPError:
        return None


def push(folder: Path, name: str, message: str, private: bool | None, token: str | None) -> str:
    """Upload a folder as a model repository, made if it is not there; returns its address.

    Raises:
        KavaError: the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        line = str(error).strip().split("\n")[0][:300]
        raise KavaError(
            f"push to {name}: {line}; log in with `hf auth login`, with a token that may write",
            code="system.not-pushed",
            key=name,
        ) from None
    return str(done.commit_url)
