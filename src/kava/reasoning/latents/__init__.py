"""Rules that generate latent tokens: all in parallel by iteration, or one at a time."""
