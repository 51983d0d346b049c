"""The folder of a training run: its files, its log, and its checkpoints."""
