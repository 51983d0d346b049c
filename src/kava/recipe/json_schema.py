"""JSON schema of recipe files, with which an editor completes keys and marks mistakes."""

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from kava.recipe import registry
from kava.recipe.schema import BackboneRecipe, Recipe, Section

#: What pydantic also reads as a number or as a truth value. An editor takes `60_000`, `0x10` and
#: `yes` for text, as YAML 1.2 has it; the loader does not.
_NUMBER = r"^\s*[-+]?[0-9.][0-9a-fA-FxX_.+-]*\s*$"
_TRUTH = r"^([Tt](rue)?|[Ff](alse)?|[Yy](es)?|[Nn]o?|[Oo](n|ff)|TRUE|FALSE|YES|NO|ON|OFF|[01])$"


def json_schema(options: Mapping[str, type[Section]]) -> dict[str, Any]:
    """Return the schema of a recipe of `kava train` or `kava pretrain` (draft 2020-12).

    Whatever `kava.load_recipe` accepts is valid. Keys that must be given may be missing where a
    recipe `extends` another. Rules between several keys are not in the schema.

    Args:
        options: for each method, the class of its `method_options`.
    """
    kinds = [Recipe, BackboneRecipe, *options.values()]
    names, whole = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys(kinds)], ref_template="#/$defs/{model}"
    )
    defs = whole["$defs"]
    for kind in _sections(kinds):
        _relax_section(defs[kind.__name__], kind)
    _list_known_names(defs)
    for kind in (Recipe, BackboneRecipe):
        made = defs[kind.__name__]
        made["properties"]["extends"] = {
            "type": "string",
            "description": "A recipe beside this one, or a shipped one, whose values hold where "
            "this file gives none.",
        }
        made |= {"if": {"required": ["extends"]}, "else": _required_keys(kind)}
    defs["Recipe"]["allOf"] = [
        {
            "if": {"properties": {"method": {"const": name}}, "required": ["method"]},
            "then": {"properties": {"method_options": names[kind, "validation"]}},
        }
        for name, kind in options.items()
    ]
    backbone_keys = ("name", "architecture", "vocabulary")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of kava",
        "type": "object",
        "if": {
            "anyOf": [{"required": [key]} for key in backbone_keys],
            "not": {"required": ["method"]},
        },
        "then": {"$ref": "#/$defs/BackboneRecipe"},
        "else": {"$ref": "#/$defs/Recipe"},
        "$defs": defs,
    }


def _sections(kinds: list[type[Section]]) -> list[type[Section]]:
    """Return the sections and all sections inside them, each once."""
    found = list(dict.fromkeys(kinds))
    for kind in found:  # grows while it is read
        inner = (_section_of(field.annotation) for field in kind.model_fields.values())
        found += [one for one in inner if one and one not in found]
    return found


def _section_of(annotation: Any) -> type[Section] | None:
    is_section = isinstance(annotation, type) and issubclass(annotation, Section)
    return annotation if is_section else None


def _relax_section(made: dict[str, Any], kind: type[Section]) -> None:
    """Change the schema of a section, in place, so that it accepts all that the loader accepts.

    A key can be given by the field's name as well as by its alias, and numbers and booleans as
    text. `_required_keys` adds which keys must be given.
    """
    made.pop("required", None)
    properties = made.setdefault("properties", {})
    for value in properties.values():
        _relax_value(value)
    for name, field in kind.model_fields.items():
        if field.alias:
            properties[name] = properties[field.alias]


def _relax_value(value: Any) -> None:
    if isinstance(value, list):
        for one in value:
            _relax_value(one)
    elif isinstance(value, dict):
        for key in ("anyOf", "items", "prefixItems", "additionalProperties"):
            _relax_value(value.get(key))
        if value.get("type") in ("integer", "number"):
            value |= {"type": [value["type"], "string"], "pattern": _NUMBER}
        elif value.get("type") == "boolean":
            value |= {"type": ["boolean", "integer", "string"], "pattern": _TRUTH}
            value |= {"minimum": 0, "maximum": 1}


def _list_known_names(defs: dict[str, Any]) -> None:
    """Add the names of methods, evictions and tasks to the schema as enumerations."""
    defs["Recipe"]["properties"]["method"]["enum"] = registry.names("methods")
    defs["EvictionSettings"]["properties"]["name"]["enum"] = registry.names("evictions")
    tasks = defs["Data"]["properties"]["leak_check"]["anyOf"][0]
    tasks["items"]["enum"] = registry.names("tasks")


def _required_keys(kind: type[Section]) -> dict[str, Any]:
    """Return the part of the schema that says which keys must be given, in all sections."""
    fields = {field.alias or name: field for name, field in kind.model_fields.items()}
    inner = {key: one for key, field in fields.items() if (one := _section_of(field.annotation))}
    below = {key: tree for key, one in inner.items() if (tree := _required_keys(one))}
    required = [key for key, field in fields.items() if field.is_required()]
    return {
        **({"required": required} if required else {}),
        **({"properties": below} if below else {}),
    }
