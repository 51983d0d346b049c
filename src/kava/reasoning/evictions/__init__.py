"""Cache compressors. One file each; the file's name is `kv.eviction.name` in a recipe."""

from __future__ import annotations

from kava.reasoning.evictions._base import Eviction, EvictionInputs, gather, select_top_k

__all__ = ["Eviction", "EvictionInputs", "gather", "select_top_k"]
