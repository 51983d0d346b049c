"""Loss terms of the training objective, one file for each term."""
