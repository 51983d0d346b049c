"""Scoring of checkpoints on tasks."""
