"""The folder of a run: its files, its log, and what is resumed from."""
