"""Files, processes, signals, locks and memory; nothing here knows of language models."""
