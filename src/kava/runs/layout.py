"""The names of the files in a run folder."""

METRICS, RESULT, RECIPE = "metrics.jsonl", "result.json", "recipe.yaml"
