"""SHA-256 of files, computed once per process for a file that does not change."""

import hashlib
from pathlib import Path

_known: dict[tuple[int, int, int, int], str] = {}


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file, or of the file that a link leads to; it is read in parts."""
    with file.open("rb") as opened:
        found = file.stat()
        key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        if key not in _known:
            _known[key] = hashlib.file_digest(opened, "sha256").hexdigest()
    return _known[key]


def sha256_of(folder: Path, patterns: tuple[str, ...]) -> dict[str, str]:
    """Return the SHA-256 of the files of a folder that match a pattern, by name."""
    files = {file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}
    return {file.relative_to(folder).as_posix(): sha256(file) for file in sorted(files)}
