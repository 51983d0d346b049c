"""Reading a recipe: its YAML file, those that it extends, and `key.subkey=value` over them.

A recipe may come from somebody else, so that what it can make kava read, hold and wait for is
limited.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from kava.errors import KavaError, on_one_line, truncate
from kava.recipe.schema import Recipe, Section, merge, validate
from kava.system import assets

#: Of a file in bytes, and of a chain of recipes that extend each other.
MAX_BYTES, MAX_INCLUDES = 1_000_000, 10


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    kind: type[Section] = Recipe,
    saved: bool = False,
) -> Any:
    """Read a recipe file, apply `key.subkey=value` overrides, validate.

    Args:
        path: a YAML file, or a recipe that ships with the package (`recipes/quickstart/kava.yaml`).
        overrides: assignments with dotted keys; values are parsed as YAML.
        kind: `Recipe` or `BackboneRecipe`.
        saved: the file belongs to a run or a checkpoint; it is then complete and extends no other.

    Raises:
        KavaError: the file is missing or not valid YAML, or a key is unknown or has a value of the
            wrong type; the message names it.
    """
    file = assets.find(path)
    tree = _read(file) if saved else _read_with_extends(file, ())
    if saved and "extends" in tree:
        raise KavaError(
            f"{file}: key 'extends': the recipe of a run or a checkpoint is complete and cannot "
            "extend another recipe; delete the key",
            code="recipe.extends-in-run",
            key="extends",
        )
    for assignment in overrides:
        _assign(tree, assignment)
    return validate(tree, str(file), kind)


def read(path: str | Path) -> dict[str, Any]:
    """Read the keys of a recipe file and of the files that it extends, without validation.

    Raises:
        KavaError: a file is missing or not valid YAML.
    """
    return _read_with_extends(assets.find(path), ())


def _read_with_extends(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    """Return the keys of a recipe merged into those of the recipe that it `extends`.

    Args:
        file: the recipe file.
        above: the files that extend it, to detect cycles.
    """
    tree = _read(file)
    if "extends" not in tree:
        return tree
    name = str(tree.pop("extends"))
    under = _find_extended(file, name)
    if under in (*above, file.resolve()):
        raise KavaError(
            f"{file}: key 'extends': circular reference, because {truncate(name)} also extends "
            "this recipe",
            code="recipe.extends-itself",
            key="extends",
        )
    if len(above) == MAX_INCLUDES:
        raise KavaError(
            f"{file}: key 'extends': the chain of extended recipes is longer than {MAX_INCLUDES}; "
            "shorten it",
            code="recipe.extends-too-many",
            key="extends",
        )
    return merge(_read_with_extends(under, (*above, file.resolve())), tree)


def _find_extended(file: Path, name: str) -> Path:
    """Return the recipe that `file` extends: near its own folder, or a shipped one.

    Allowed are the folder of `file`, those below it, and the one above.

    Raises:
        KavaError: there is none, or it is in another folder.
    """
    elsewhere = KavaError(
        f"{file}: key 'extends': {truncate(name)} was found neither in this recipe's folder nor "
        "among the shipped recipes; copy it into this recipe's folder",
        code="recipe.extends-elsewhere",
        key="extends",
    )
    if "\0" in name or len(name) > 1000 or any(len(part) > 255 for part in name.split("/")):
        raise elsewhere  # no name of a file
    beside = file.parent / name
    under = (beside if beside.is_file() else assets.find(name)).resolve()
    for folder in (file.parent.resolve(), file.resolve().parent):
        if under.is_relative_to(folder) or under.parent == folder.parent:
            return under
    if any(under.is_relative_to(root / "recipes") for root in assets.roots()):
        return under
    raise elsewhere


def _read_text(file: Path) -> str:
    """Read the text of a recipe file.

    Raises:
        KavaError: it is not a regular file, or too large.
    """
    mode = file.stat().st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # a device need not end, a pipe not begin
        raise KavaError(
            f"{file}: is not a regular file; give a recipe (a YAML file)",
            code="recipe.not-a-file",
            key=str(file),
        )
    with file.open("rb") as opened:
        content = opened.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise KavaError(
            f"{file}: is larger than {MAX_BYTES:,} bytes, the maximum for a recipe",
            code="recipe.too-large",
            key=str(file),
        )
    return content.decode("utf-8")


def _read(file: Path) -> dict[str, Any]:
    """Read a YAML file that contains a mapping.

    Raises:
        KavaError: the file is missing, is a folder, is not valid YAML or not a mapping.
    """
    try:
        tree = yaml.load(_read_text(file), Loader=_Loader)
    except IsADirectoryError:
        yaml_files = sorted(path.name for path in file.glob("*.yaml"))
        holds = f"; the folder contains {', '.join(yaml_files)}" if yaml_files else ""
        raise KavaError(
            f"{file}: is a folder; give a recipe (a YAML file){holds}",
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
            f"{file}: a recipe must be a mapping of keys to values",
            code="recipe.not-a-mapping",
            key=str(file),
        )
    return tree


def parse(text: str, where: str) -> Any:
    """Parse a value from the command line as YAML, in the same way as in a recipe.

    There are no comments on the command line: a text keeps what follows ` #`.

    Args:
        text: the value.
        where: name of the value in error messages.

    Raises:
        KavaError: the value is not valid YAML, or `#` follows something that is not a plain text.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        end = node.end_mark.index if node else 0
        if not text[end:].lstrip().startswith("#"):
            return loader.construct_document(node) if node else None
        plain = isinstance(node, yaml.ScalarNode) and node.style is None
        if node is None or (plain and node.tag == "tag:yaml.org,2002:str"):
            return text.strip()
        raise KavaError(
            f"{where}: '{truncate(text)}' would end before '#', where a comment begins in YAML; "
            "put the value in quotes, or remove the comment",
            code="recipe.comment-in-value",
            key=where.rpartition(" ")[2],
        )
    except yaml.YAMLError as error:
        code, key = _code(error, where.rpartition(" ")[2])
        message = f"{where}: '{truncate(text)}' is not a valid YAML value: {_problem(error)}"
        raise KavaError(message, code=code, key=key) from None


def _problem(error: Exception) -> str:
    return on_one_line(getattr(error, "problem", None) or error)


def _code(error: Exception, key: str) -> tuple[str, str]:
    """Return the code and the key of a YAML error; the given key if the error has none."""
    if isinstance(error, _YamlError):
        return error.code, error.key or key
    return "recipe.bad-yaml", key


class _YamlError(yaml.MarkedYAMLError):
    """Error of `_Loader`, with the code and the key of the KavaError that it becomes."""

    def __init__(self, code: str, problem: str, mark: yaml.Mark, key: str | None = None):
        super().__init__(problem=problem, problem_mark=mark)
        self.code, self.key = code, key


class _Loader(yaml.SafeLoader):
    """YAML loader that reads `1e-4` as a number, as in YAML 1.2, and rejects duplicate keys.

    `1:30` is text, as in YAML 1.2, and no 90. What a few bytes can blow up is refused: aliases, and
    more lists, mappings and values than a recipe has. Whatever it cannot read is a YAMLError, where
    PyYAML lets errors of Python through: for what looks like a number or a date and is none, and
    where lists or mappings lie too deep.
    """

    deepest, most, longest_number = 100, 10_000, 100
    _depth = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise _YamlError(
                "recipe.alias",
                "aliases and anchors (*name, &name) are not supported; write the value out, or "
                "quote a string that starts with * or &",
                event.start_mark,
            )
        self._depth += 1
        self._nodes += 1
        if self._depth > self.deepest:
            raise _YamlError(
                "recipe.nested-too-deep",
                f"nested more than {self.deepest} levels deep",
                event.start_mark,
            )
        if self._nodes > self.most:
            raise _YamlError(
                "recipe.too-many-values", f"more than {self.most:,} values", event.start_mark
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        try:
            if kind in ("int", "float") and (
                ":" in node.value or len(node.value) > self.longest_number
            ):
                raise ValueError
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):  # what is made of a word is not checked
            raise _YamlError(
                "recipe.not-of-its-type",
                f"'{truncate(node.value)}' is not a valid {kind}; quote it if it is a string",
                node.start_mark,
            ) from None

    def _check_number(self, word: str) -> None:
        """Refuse a number to base 60 (`!!int 1:30`), and one with too many digits to convert."""
        if ":" in word or len(word) > self.longest_number:
            raise ValueError

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _YamlError(
                    "recipe.key-is-no-word",
                    "a key must be a single word, not a list or a mapping",
                    key.start_mark,
                )
            if key.value in keys:
                raise _YamlError(
                    "recipe.key-twice",
                    f"key '{truncate(key.value)}' is given twice",
                    key.start_mark,
                    key.value,
                )
            keys.add(key.value)
        return super().construct_mapping(node, deep)


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """Return PyYAML's resolvers, with patterns of numbers that cannot backtrack.

    There are no numbers to base 60.
    """
    numbers = {"tag:yaml.org,2002:int", "tag:yaml.org,2002:float"}
    return {
        letter: [(tag, pattern) for tag, pattern in known if tag not in numbers]
        for letter, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.yaml_implicit_resolvers = _resolvers()
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"^(?:[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)"
        r"|\.[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))|\.[0-9][0-9_]*|\.(?:nan|NaN|NAN))$"
    ),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:int",
    re.compile(r"^[-+]?(?:0b[01_]+|0x[0-9a-fA-F_]+|0[0-7_]*|[1-9][0-9_]*)$"),
    list("-+0123456789"),
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
                f"'{assignment}': '{parent}' is a value, so it has no keys below it",
                code="recipe.not-a-section",
                key=parent,
            )
        tree = node
    tree[leaf] = parse(value, key)
