"""How fast training and generation are: `kava bench`."""
