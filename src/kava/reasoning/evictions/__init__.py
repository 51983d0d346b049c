"""Eviction methods that compress the teacher's KV cache, one file for each method.

The file name is the value of `kv.eviction.name` in a recipe.
"""

from kava.reasoning.evictions._base import (
    Eviction,
    EvictionInputs,
    Observers,
    gather,
    select_top_k,
)

__all__ = ["Eviction", "EvictionInputs", "Observers", "gather", "select_top_k"]
