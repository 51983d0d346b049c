"""What is usually wrong with a folder that should hold a model, and what to do about it.

transformers reports these cases as files that are missing or not readable, or not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from kava.backbones import gguf, headers
from kava.backbones.headers import INDEX_FILE, WEIGHTS_FILE
from kava.errors import KavaError, truncate
from kava.system.text import printable

_POINTER = b"version https://git-lfs.github.com/spec/"
#: What a prefix of all names of weights comes from.
_PREFIXES = {
    "_orig_mod.": "a compiled model",
    "module.": "a model in DataParallel",
    "base_model.model.": "a model in peft; use its merge_and_unload()",
}


def check(folder: Path) -> None:
    """Report common mistakes about a backbone's folder or GGUF file, before transformers reads it.

    A folder without any of these mistakes is not checked further.

    Raises:
        KavaError: a file is a Git LFS pointer; the folder belongs to the cache of the Hub; it holds
            only an adapter, or only GGUF files; or its shards are not those of their index.
    """
    if not folder.is_dir():
        _check_pointers([folder])
        return
    _check_pointers(sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]))
    _check_cache(folder)
    if (folder / "adapter_config.json").is_file():
        raise KavaError(
            f"{folder}: the folder contains a PEFT adapter; merge it into its model "
            "(merge_and_unload), and give a folder that contains only the merged model",
            code="backbones.is-adapter",
            key=str(folder),
        )
    _check_gguf(folder)
    _check_shards(folder)


def _check_pointers(files: Sequence[Path]) -> None:
    for file in files:
        if not file.is_file():
            continue
        with file.open("rb") as opened:
            begins = opened.read(len(_POINTER))
        if begins == _POINTER:
            raise KavaError(
                f"{file}: is a Git LFS pointer and not the file itself; run "
                f"`git lfs pull` in {file.parent}, or download the file again",
                code="backbones.lfs-pointer",
                key=str(file),
            )


def _check_cache(folder: Path) -> None:
    commits = folder / "snapshots"
    if (folder / "config.json").is_file() or not commits.is_dir():
        return
    there = sorted(entry.name for entry in commits.iterdir() if entry.is_dir())
    name = folder.name.removeprefix("models--").replace("--", "/")
    commit = there[0] if len(there) == 1 else "COMMIT"
    raise KavaError(
        f"{folder}: is a folder of the Hub's cache; give its snapshot {commits / commit}, or the "
        f"name {name}",
        code="backbones.hub-cache-folder",
        key=str(folder),
    )


def _check_gguf(folder: Path) -> None:
    files = sorted(file for file in folder.iterdir() if gguf.is_file(file))
    if files and not any(folder.glob("*.safetensors")):
        more = f" (or another of its {len(files)} GGUF files)" if len(files) > 1 else ""
        raise KavaError(
            f"{folder}: contains GGUF and no safetensors; give the file {files[0]}{more}",
            code="backbones.gguf-folder",
            key=str(folder),
        )


def _check_shards(folder: Path) -> None:
    """Check that an index of shards and the shards belong together.

    Raises:
        KavaError: a shard is not in the folder, holds other weights than the index says, or there
            is no index.
    """
    index = folder / INDEX_FILE
    if (folder / WEIGHTS_FILE).is_file():
        return  # which transformers prefers to shards
    if not index.is_file():
        if shards := sorted(folder.glob("model-*-of-*.safetensors")):
            raise KavaError(
                f"{index}: is missing, but the folder has {len(shards)} shards of a model (first: "
                f"{_name(shards[0].name)}); copy this file too",
                code="backbones.no-shard-index",
                key=str(index),
            )
        return
    said = headers.weight_map(index)
    names = set(said.values())
    # A path elsewhere is not followed.
    lacking = sorted(n for n in names if not (headers.is_file_name(n) and (folder / n).is_file()))
    if lacking:
        raise KavaError(
            f"{index}: {len(lacking)} of {len(names)} shards are not in the folder "
            f"(first: {_name(lacking[0])}); copy them too",
            code="backbones.shard-missing",
            key=str(index),
        )
    wrong = sorted(set(said.items()) ^ set(_weights_of_shards(folder, said.values())))
    if wrong:
        raise KavaError(
            f"{index}: does not match the shards in its folder: they differ in {len(wrong)} "
            f"weights (first: {_name(wrong[0][0])}); copy the model again, or save it "
            "again with save_pretrained",
            code="backbones.stale-shard-index",
            key=str(index),
        )


def _weights_of_shards(folder: Path, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the name of each weight in the shards, with the name of its shard."""
    for name in sorted(set(names)):
        try:
            with safe_open(folder / name, framework="pt") as shard:
                yield from ((weight, name) for weight in shard.keys())  # noqa: SIM118 - no dict
        except SafetensorError as error:
            raise KavaError(
                f"{folder / name}: damaged: {error}",
                code="backbones.damaged",
                key=str(folder / name),
            ) from None


def other_weights(folder: Path, problems: Mapping[str, Sequence[str]]) -> KavaError:
    """Return the error for weights that do not fit the architecture.

    Args:
        folder: the folder of the model.
        problems: what transformers reports: for each kind, names of weights, sorted.
    """
    summary = "; ".join(
        f"{kind}: {len(names)} ({', '.join(map(_name, names[:3]))}"
        f"{', ...' if len(names) > 3 else ''})"
        for kind, names in problems.items()
    )
    missing, found = problems.get("missing_keys", ()), problems.get("unexpected_keys", ())
    prefix = _prefix(missing, found)
    origin = _PREFIXES.get(prefix)
    saved = f" (saved from {origin})" if origin else ""
    hint = (
        f"; all unexpected names begin with '{_name(prefix)}'{saved}: remove this prefix from the "
        "names and save the weights again"
        if prefix
        else ""
    )
    return KavaError(
        f"backbone {folder}: weights do not fit the architecture: {summary}{hint}",
        code="backbones.other-weights",
        key=str(folder),
    )


def _prefix(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return the prefix that turns the missing names into the unexpected ones; '' if none does."""
    known = [prefix for prefix in _PREFIXES if all(n.startswith(prefix) for n in unexpected)]
    if not unexpected or not missing or known:
        return known[0] if known and unexpected else ""
    first = next((name for name in unexpected if name.endswith(f".{missing[0]}")), "")
    prefix = first.removesuffix(missing[0])
    return prefix if prefix and all(name.startswith(prefix) for name in unexpected) else ""


def _name(text: str) -> str:
    """Return a name from a file without control characters, shortened to fit into a message."""
    return truncate(" ".join(printable(text).split()), 120)
