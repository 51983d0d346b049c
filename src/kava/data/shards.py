"""Find the files that a source consists of: one file, several, shards, `save_to_disk`, `hf://`."""

import glob
import json
import re
from collections.abc import Iterable
from pathlib import Path

from kava.errors import KavaError, truncate, unknown_name
from kava.system import assets, hub

HUB = "hf://"
_HUB_FILE = re.compile(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/(.+)")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_NO_SHARDS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}


def find_files(source: str | Path, split: str | None, endings: Iterable[str]) -> list[Path]:
    """Return the files of a source in order; see `kava.data.files.read_rows`.

    Raises:
        KavaError: if there is no such file, or none of the split in a folder that has others.
    """
    name = str(source)
    if name.startswith(HUB):
        return [_from_hub(name)]
    path = assets.expand_user(source)
    if path.is_dir():
        return _files_in_folder(path, split, tuple(endings))
    if path.exists():
        return [path]
    parts = [assets.expand_user(part.strip()) for part in name.split(",")]
    if len(parts) > 1 and all(part.exists() for part in parts):
        return [file for part in parts for file in find_files(part, split, endings)]
    if found := sorted(glob.glob(str(path)), key=_natural_key):
        return [Path(file) for file in found]
    raise KavaError(f"{path}: no such file", code="data.no-file", key=str(path))


def _files_in_folder(folder: Path, split: str | None, endings: tuple[str, ...]) -> list[Path]:
    if (folder / "dataset_dict.json").is_file():
        splits = _read_names(folder / "dataset_dict.json", "splits")
        if split not in splits:
            raise _unknown_split(folder, split, splits)
        folder = folder / str(split)
    if (folder / "state.json").is_file():
        return [folder / name for name in _read_names(folder / "state.json", "_data_files")]
    files = [
        file
        for file in sorted(folder.iterdir(), key=lambda file: _natural_key(file.name))
        if file.is_file() and file.name not in _NO_SHARDS and _ending(file) in endings
    ]
    named = {file: _split_of(file.name) for file in files}
    if any(named.values()):
        files = [file for file in files if named[file] == split]
        if not files:
            raise _unknown_split(folder, split, sorted(filter(None, named.values())))
    kinds = sorted({_ending(file) for file in files})
    if len(kinds) != 1:
        has = f"files that end in {', '.join(kinds)}" if kinds else "no data files"
        raise KavaError(
            f"{folder} is a folder with {has}; give a file, or a folder of files of one kind "
            f"({', '.join(endings)})",
            code="data.is-folder",
            key=str(folder),
        )
    return files


def _read_names(file: Path, key: str) -> list[str]:
    """Return the names listed in a file of `save_to_disk`, after checking that they are local."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))[key]
        names = [one["filename"] if isinstance(one, dict) else one for one in found]
        if not names or not all(Path(name).name == name for name in names):
            raise ValueError("it lists files outside of its folder")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise KavaError(
            f"{file}: not a file of save_to_disk ({truncate(str(error))})",
            code="data.bad-folder",
            key=str(file),
        ) from None
    return names


def _unknown_split(folder: Path, split: str | None, splits: Iterable[str]) -> KavaError:
    return unknown_name(f"split of {folder}", str(split), set(splits), code="data.unknown-split")


def _split_of(name: str) -> str | None:
    first = re.split(r"[^a-z]", name.lower())[0]
    return next((split for split, names in _SPLITS.items() if first in names), None)


def _ending(file: Path) -> str:
    return Path(file.name.lower().removesuffix(".gz")).suffix


def _natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key by which shard 10 follows shard 9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", name)]


def _from_hub(source: str) -> Path:
    """Download one file of a data set to the cache of the Hub."""
    match = _HUB_FILE.fullmatch(source)
    if match is None or "*" in source:
        raise KavaError(
            f"{source}: write hf://datasets/OWNER/NAME/FILE, or OWNER/NAME for a whole data set",
            code="data.bad-hub-file",
            key=source,
        )
    from huggingface_hub import hf_hub_download

    name, revision, file = match.groups()
    try:
        path = hf_hub_download(
            name,
            file,
            repo_type="dataset",
            revision=revision,
            local_files_only=not hub.is_reachable(name, "dataset"),
        )
    except Exception as error:  # classes differ between versions
        why = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KavaError(
            f"cannot load '{source}' from the Hugging Face Hub ({why}); go online, log in with "
            "`hf auth login`, or give a local copy",
            code="data.not-had",
            key=source,
        ) from None
    hub.record_download(name, f"file '{file}'", [Path(path)])
    return Path(path)
