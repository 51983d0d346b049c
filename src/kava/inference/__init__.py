"""Answers outside of a training: the pipeline, and plain decoding with a compressed cache."""
