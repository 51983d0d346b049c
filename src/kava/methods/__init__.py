"""Training methods. One file each; the file's name is the method's name in a recipe."""
