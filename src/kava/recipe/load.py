"""Load a recipe from its YAML file, the files that it extends, and `key.subkey=value` overrides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kava.errors import KavaError
from kava.recipe.schema import Recipe, Section, merge, validate
from kava.system import assets


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), kind: type[Section] = Recipe
) -> Any:
    """Read a recipe file, apply `key.subkey=value` overrides, and validate the result.

    Args:
        path: a YAML file, or a recipe that ships with the package (`recipes/quickstart/kava.yaml`).
        overrides: assignments with dotted keys; values are parsed as YAML.
        kind: `Recipe` or `BackboneRecipe`.

    Raises:
        KavaError: the file is missing or not valid YAML, or a key is unknown or has a value of the
            wrong type; the message names it.
    """
    file = assets.find(path)
    tree = _extended(file, ())
    for assignment in overrides:
        _assign(tree, assignment)
    return validate(tree, str(file), kind)


def read(path: str | Path) -> dict[str, Any]:
    """Read the keys of a recipe file and of the files that it extends, without validation.

    Raises:
        KavaError: a file is missing or not valid YAML.
    """
    return _extended(assets.find(path), ())


def _extended(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a recipe merged into those of the recipe that it `extends`.

    Args:
        file: the recipe file.
        above: the files that extend it, to detect cycles.
    """
    tree = _read(file)
    if "extends" not in tree:
        return tree
    name = tree.pop("extends")
    beside = file.parent / str(name)
    under = (beside if beside.is_file() else assets.find(str(name))).resolve()
    if under in (*above, file.resolve()):
        raise KavaError(
            f"{file}: key 'extends': {name} extends this recipe in turn",
            code="recipe.extends-itself",
            key="extends",
        )
    return merge(_extended(under, (*above, file.resolve())), tree)


def _read(file: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        KavaError: the file is missing, is a folder, is not valid YAML or not a mapping.
    """
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_Loader)
    except IsADirectoryError:
        held = sorted(path.name for path in file.glob("*.yaml"))
        holds = f"; it holds {', '.join(held)}" if held else ""
        raise KavaError(
            f"{file}: is a folder; give a recipe, a YAML file{holds}",
            code="recipe.is-folder",
            key=str(file),
        ) from None
    except OSError as error:
        raise KavaError(
            f"{file}: cannot be read: {error.strerror}", code="recipe.unreadable", key=str(file)
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        code, key = _code(error, str(file))
        message = f"{file}{line}: not valid YAML: {_problem(error)}"
        raise KavaError(message, code=code, key=key) from None
    if not isinstance(tree, dict):
        raise KavaError(
            f"{file}: a recipe is a mapping of keys to values, this is not one",
            code="recipe.not-a-mapping",
            key=str(file),
        )
    return tree


def parse(text: str, where: str) -> Any:
    """Parse a value from the command line as YAML, in the same way as in a recipe.

    Args:
        text: the value.
        where: name of the value in error messages.

    Raises:
        KavaError: the value is not valid YAML.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        code, key = _code(error, where.rpartition(" ")[2])
        message = f"{where}: '{_shown(text)}' is not a valid YAML value: {_problem(error)}"
        raise KavaError(message, code=code, key=key) from None


def _problem(error: Exception) -> str:
    return getattr(error, "problem", None) or " ".join(str(error).split())


def _code(error: Exception, key: str) -> tuple[str, str]:
    """Return the code and the key of a YAML error; the given key if the error has none."""
    if isinstance(error, _Refused):
        return error.code, error.key or key
    return "recipe.bad-yaml", key


def _shown(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:77]}..."


class _Refused(yaml.MarkedYAMLError):
    """Error of `_Loader`, with the code and the key of the KavaError that it becomes."""

    def __init__(self, code: str, problem: str, mark: yaml.Mark, key: str | None = None):
        super().__init__(problem=problem, problem_mark=mark)
        self.code, self.key = code, key


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-4` as a number, as in YAML 1.2, and rejects duplicate keys.

    Everything that it cannot read raises a YAMLError. PyYAML raises other errors of Python for
    values that look like a number or a date but are not, and for lists or mappings that are nested
    too deeply.
    """

    deepest = 100
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > self.deepest:
            raise _Refused(
                "recipe.nested-too-deep",
                f"nested more than {self.deepest} deep",
                self.peek_event().start_mark,
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # PyYAML does not check converted values
            kind = node.tag.rpartition(":")[2]
            raise _Refused(
                "recipe.not-of-its-type",
                f"'{_shown(node.value)}' is no {kind}; in quotes it is text",
                node.start_mark,
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Refused(
                    "recipe.key-is-no-word",
                    "a key is one word, this is a list or a mapping",
                    key.start_mark,
                )
            if key.value in seen:
                raise _Refused(
                    "recipe.key-twice",
                    f"key '{key.value}' is given twice",
                    key.start_mark,
                    key.value,
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def _assign(tree: dict[str, Any], assignment: str) -> None:
    """Apply one override `key.subkey=value` to a mapping, in place.

    Raises:
        KavaError: the override is not valid.
    """
    key, sign, value = assignment.partition("=")
    if not sign or not key:
        raise KavaError(
            f"'{assignment}': an override is written key=value, as in train.steps=100",
            code="recipe.bad-override",
            key=assignment,
        )
    *parents, leaf = key.split(".")
    for parent in parents:
        node = tree.setdefault(parent, {})
        if not isinstance(node, dict):
            raise KavaError(
                f"'{assignment}': '{parent}' holds a value, not further keys",
                code="recipe.not-a-section",
                key=parent,
            )
        tree = node
    tree[leaf] = parse(value, key)
