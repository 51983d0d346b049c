"""The names of the files in a run folder."""

from __future__ import annotations

METRICS, RESULT, RECIPE = "metrics.jsonl", "result.json", "recipe.yaml"
