"""Talk to the Hugging Face Hub: check that it answers, look for files, download and upload."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from kava.errors import KavaError, first_line


class NotAvailable(KavaError):
    """A folder or repository that exists neither locally nor on the Hub.

    reason: its name and the reason, without advice, which depends on the caller.
    """

    def __init__(
        self, message: str, reason: str, *, code: str = "system.not-had", key: str | None = None
    ):
        super().__init__(message, code=code, key=key)
        self.reason = reason


_offline: ContextVar[bool] = ContextVar("kava_offline", default=False)


@dataclass(frozen=True)
class Download:
    """Files from the Hub that are on this machine now.

    what: what they are, such as `backbone` or `split 'train'`.
    """

    name: str
    what: str
    folder: Path
    bytes: int


_found: ContextVar[list[Download] | None] = ContextVar("kava_found", default=None)


@contextmanager
def recording_downloads() -> Iterator[list[Download]]:
    """Inside the block, list everything that is loaded from the Hub or its local cache."""
    found: list[Download] = []
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def record_download(name: str, what: str, files: Iterable[Path]) -> None:
    """Record that something was loaded, for the enclosing `recording_downloads`."""
    found, files = _found.get(), list(files)
    if found is not None and files:
        size = sum(file.stat().st_size for file in files)
        found.append(Download(name, what, files[0].parent, size))


@contextmanager
def offline_mode() -> Iterator[None]:
    """Inside the block, send no request to the Hub; earlier downloads are still found."""
    token = _offline.set(True)
    try:
        yield
    finally:
        _offline.reset(token)


def is_reachable(name: str, kind: str) -> bool:
    """Whether the Hub answers a request for a repository, without retries.

    If the Hub is unreachable, the loading libraries retry for half a minute before they use their
    own cache.

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
    except HfHubHTTPError:  # the Hub answered; if it refuses, the download reports why
        return True
    except Exception:  # no network, a proxy, offline mode: classes differ between versions
        return False
    return True


def is_name(name: str) -> bool:
    """Whether a text has the form `owner/name` of a repository, and is not a path."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and "\\" not in name


def download(name: str, revision: str | None, patterns: list[str], what: str, instead: str) -> Path:
    """Download a model repository's files to the local cache, and return their folder.

    The Hub is asked only if it is reachable; otherwise the local cache is used.

    Args:
        patterns: the files to download; no others are.
        what: what is being looked for, for messages.
        instead: what the user can do, for messages.

    Raises:
        NotAvailable: if the Hub does not provide it and there is no local copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name,
            revision=revision,
            allow_patterns=patterns,
            ignore_patterns=["original/*"],
            local_files_only=not is_reachable(name, "model"),
        )
    except LocalEntryNotFoundError:
        why = "the Hugging Face Hub cannot be reached and there is no local copy"
        raise _not_available(name, why, what, instead) from None
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise _not_available(name, first_line(error), what, instead) from None
    record_download(name, what, sorted(file for file in Path(folder).iterdir() if file.is_file()))
    return Path(folder)


def _not_available(name: str, why: str, what: str, instead: str) -> NotAvailable:
    detail = f"{name}: no such folder, and it cannot be loaded from the Hub: {why}"
    return NotAvailable(f"{what} {detail}; {instead}", detail, code="system.not-on-hub", key=name)


def has_file(name: str, file: str, revision: str | None = None) -> bool:
    """Whether a model repository has a file; if the Hub is unreachable, the local cache decides."""
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str):
            return True
        return is_reachable(name, "model") and HfApi().file_exists(name, file, revision=revision)
    except (HfHubHTTPError, HFValidationError):  # gated, or no such name: loading it reports this
        return False


def revision(name: str, kind: str) -> str | None:
    """Return the newest commit of a repository, or None if the Hub does not answer."""
    if not is_reachable(name, kind):
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=10).sha
    except HfHubHTTPError:
        return None


def push(folder: Path, name: str, message: str, private: bool | None, token: str | None) -> str:
    """Upload a folder as a model repository, which is created if needed; return the commit's URL.

    Raises:
        KavaError: if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        done = api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    except (OSError, HfHubHTTPError, HFValidationError) as error:
        raise KavaError(
            f"push to {name}: {first_line(error)}; log in with `hf auth login` and a token with "
            "write access",
            code="system.not-pushed",
            key=name,
        ) from None
    return str(done.commit_url)
