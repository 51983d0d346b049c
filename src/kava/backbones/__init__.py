"""Causal language models of transformers, with the caches, masks and positions they run on."""
