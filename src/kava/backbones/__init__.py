"""Causal language models of transformers, and the KV caches, masks and positions they use."""
