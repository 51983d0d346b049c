"""The method: latents, compression, distillation losses, and the model that is made of them.

reasoner.py   backbone, adapter, special tokens and projection in one module
methods/      one file for each training method
latents/      how latent tokens come about
evictions/    how the teacher's cache is compressed
losses/       what the student is compared with
"""
