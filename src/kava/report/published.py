"""Numbers published by others, each with its source; `published.yaml` is the only file with any."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")


@dataclass(frozen=True)
class Number:
    """A published value and the source that it is from."""

    value: float
    source: str

    @property
    def citation(self) -> str:
        """The source in a few words, such as `arXiv:2510.02312v1, second-hand`."""
        source = load()["sources"][self.source]
        version = source["version"]
        version = version if version.startswith("v") else ""
        return f"arXiv:{source['arxiv']}{version}, {source['read']}"


@cache
def load() -> dict[str, Any]:
    """Return the contents of `published.yaml`."""
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def number(quantity: str, task: str, setting: str, method: str) -> Number | None:
    """Return a published value, or None if none is known.

    Args:
        quantity: `accuracy` (percent) or `forward_passes`.
        setting: a folder of `recipes/`, such as `llama1b_aug`.
    """
    for entry in load()["results"]:
        place = entry["quantity"], entry["task"], entry["setting"]
        if place == (quantity, task, setting) and method in entry["values"]:
            return Number(float(entry["values"][method]), entry["source"])
    return None


def settings() -> dict[str, dict[str, Any]]:
    """Return the paper's settings: name to backbone, data and training values (KaVa, Table 6)."""
    return load()["table6"]["settings"]
