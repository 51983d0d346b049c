"""Generate answers outside training: the pipeline, and decoding with a compressed KV cache."""
