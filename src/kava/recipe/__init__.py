"""Recipes: the configuration of a run, validated before anything heavy is imported.

schema.py       the keys, their types and limits
load.py         YAML files, `extends`, and overrides on the command line
json_schema.py  their JSON schema, for editors
registry.py     names of methods, evictions, data sets and tasks
"""
