"""Cache compressors. One file each; the file's name is `kv.eviction.name` in a recipe."""
