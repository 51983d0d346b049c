"""Inspect one answer: what latents contain, how they move, and what the compressed cache keeps."""
