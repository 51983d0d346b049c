"""Files, processes, signals, locks and memory: code that is independent of language models."""
