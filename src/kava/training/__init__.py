"""Train a reasoner or a backbone from a recipe, with the Trainer of transformers."""
