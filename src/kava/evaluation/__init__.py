"""Evaluate reasoners: answer tasks, read and score the answers, compare runs, ablate latents."""
