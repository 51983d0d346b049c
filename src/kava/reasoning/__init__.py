"""Latent reasoning: latents, cache compression, distillation losses, and the model that uses them.

reasoner.py   backbone, adapter, special tokens and projection in one module
methods/      training methods, one file each
latents/      rules that generate the latent tokens
evictions/    methods that compress the teacher's KV cache
losses/       terms of the training objective
"""
