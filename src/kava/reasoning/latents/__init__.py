"""How latent tokens come about: all at once by iteration, or one at a time."""
