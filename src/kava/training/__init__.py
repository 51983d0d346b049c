"""Training of a recipe into a run folder."""
