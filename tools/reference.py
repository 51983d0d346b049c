"""Reference pages made from the code: `python -m tools.reference docs/reference`.

Every command with its help, every recipe key with its type and default, every method, eviction,
task and data set with the first line of its file, and what is called from Python; and the JSON
schema of recipes. A test compares the committed files with these.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
import textwrap
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import typer
from pydantic.fields import FieldInfo

from kava.data import data_sets
from kava.reasoning.resolve import recipe_schema
from kava.recipe import registry
from kava.recipe.load import load_recipe
from kava.recipe.registry import PACKAGES
from kava.recipe.schema import BackboneRecipe, Recipe, Section, flatten
from kava.system.files import write_whole
from kava.system.tables import markdown_table
from tools.keys import told

WIDTH = 96


def pages() -> dict[str, str]:
    """File name to text."""
    made = {"commands": commands, "recipe": recipe, "pieces": pieces, "python": python}
    schema = json.dumps(recipe_schema(), indent=1, ensure_ascii=False) + "\n"
    return {**{f"{name}.md": make() for name, make in made.items()}, "recipe.schema.json": schema}


def commands() -> str:
    """Every command as `--help` prints it."""
    from kava.cli import app

    root = typer.main.get_command(app)
    parts = ["# Commands\n\nAs each prints it with `--help`.\n"]
    for words, command in _commands(root, ("kava",)):
        context = click.Context(command, info_name=" ".join(words), terminal_width=WIDTH)
        context.max_content_width = WIDTH
        parts.append(
            f"## {' '.join(words)}\n\n```text\n{command.get_help(context).rstrip()}\n```\n"
        )
    return "\n".join(parts)


def recipe() -> str:
    """Every key of a recipe."""
    parts = [
        "# Recipe keys\n\n"
        "A recipe is YAML; a key inside a section is written `section.key` on the command line. "
        "Unknown keys are refused. What a method sets by itself stands under its name below.\n",
        "## A training: `kava train`\n",
        _section(Recipe, "", "Recipe"),
        "## A backbone: `kava pretrain`\n",
        _section(BackboneRecipe, "", "BackboneRecipe"),
        "## What methods set, and their own keys\n",
    ]
    for name in registry.names("methods"):
        method = registry.find("methods", name)
        defaults = ", ".join(f"`{k}: {_shown(v)}`" for k, v in flatten(method.defaults).items())
        parts.append(f"### {name}\n\n{'Sets ' + defaults + '.' if defaults else 'Sets nothing.'}\n")
        if method.Options.model_fields:
            parts.append(_section(method.Options, "method_options.", "Recipe"))
    return "\n".join(parts)


def pieces() -> str:
    """What can be named in a recipe or a command, by the folder that a new one goes into."""
    parts = ["# Pieces\n\nEach is one file of `src/kava`.\n"]
    for folder, chosen in _FOLDERS.items():
        rows = []
        for name in _files(folder):
            doc = inspect.getdoc(importlib.import_module(f"kava.{PACKAGES[folder]}.{name}")) or ""
            first = " ".join(_plain(doc).split("\n\n")[0].split())
            rows.append((f"`{name}`", first.replace("|", "\\|")))
        table = markdown_table(("name", "what it is"), rows, left=(0, 1))
        parts.append(f"## {folder}\n\n{chosen}\n\n{table}\n")
    return "\n".join(parts)


def python() -> str:
    """What is called from Python, as its docstrings have it."""
    from kava.inference.compressed import Log, compressed
    from kava.inference.pipeline import TextGenerationPipeline, pipeline
    from kava.reasoning.answers import Answer, GenerateOutput, ReasoningResult
    from kava.reasoning.reasoner import Reasoner

    parts = [_PYTHON, f"## kava.Reasoner\n\n{_summary(Reasoner)}\n"]
    for name in _REASONER:
        parts.append(_called(f"Reasoner.{name}", getattr(Reasoner, name)))
    parts.append("## Other functions\n")
    call = TextGenerationPipeline.__call__
    for name, function in (
        ("kava.pipeline", pipeline), ("The pipeline itself", call),
        ("kava.compressed", compressed), ("kava.load_recipe", load_recipe),
    ):  # fmt: skip
        parts.append(_called(name, function))
    parts.append("## What comes back\n")
    for kind in (Answer, GenerateOutput, ReasoningResult, Log):
        doc = _escaped(_plain(inspect.getdoc(kind) or ""))
        parts.append(f"### {kind.__name__}\n\n{doc}\n")
    return "\n".join(parts)


_PYTHON = """# From Python

`from kava import Reasoner, Recipe, compressed, load_recipe, pipeline`. The keys of a `Recipe` are
those of a [recipe file](recipe.md). A `KavaError` (`kava.errors`) is one line that says what is
wrong and what would be right.
"""
#: What users call of a reasoner; the rest of its methods is what methods and latent rules are of.
_REASONER = (
    "from_pretrained", "from_backbone", "build", "generate", "think", "answer", "continue_from",
    "prompt_embeds", "train_on", "merge", "save_pretrained", "push_to_hub",
)  # fmt: skip


def _called(title: str, function: Any) -> str:
    """A heading, the signature, and the docstring with its sections as lists."""
    doc = inspect.getdoc(function) or ""
    before, *sections = re.split(r"^(Args|Returns|Raises):\n", doc, flags=re.MULTILINE)
    parts = [f"### {title}\n", f"```text\n{_signature(title, function)}\n```\n"]
    parts.append(f"{_escaped(before.strip())}\n")
    for section, text in zip(sections[::2], sections[1::2], strict=True):
        parts.append(f"**{section}**\n\n{_escaped(_section_text(section, text))}\n")
    return "\n".join(parts)


def _section_text(section: str, text: str) -> str:
    lines = textwrap.dedent(text).strip()
    return lines if section == "Returns" else re.sub(r"^(\w+): ", r"- `\1`: ", lines, flags=re.M)


def _signature(title: str, function: Any) -> str:
    """As it is called; in several lines where one would be too long."""
    found = inspect.signature(function)
    words = [_parameter(p) for p in found.parameters.values() if p.name != "self"]
    # contextlib's decorator keeps the annotation of the generator that it wraps
    given = str(found.return_annotation).replace("Iterator[", "ContextManager[")
    end = ")" if given == "None" else f") -> {given}"
    name = "pipe" if title.startswith("The ") else title
    line = f"{name}({', '.join(words)}{end}"
    if len(line) <= WIDTH:
        return line
    return "\n".join([f"{name}(", *(f"    {word}," for word in words), end])


def _parameter(parameter: inspect.Parameter) -> str:
    stars = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
    told = f"{stars}{parameter.name}: {parameter.annotation}"
    default = parameter.default
    shown = default.__name__ if isinstance(default, type) else repr(default)
    return told if default is parameter.empty else f"{told} = {shown}"


def _summary(kind: type) -> str:
    """A class's docstring without the arguments of its constructor."""
    return _escaped((inspect.getdoc(kind) or "").partition("\nArgs:")[0].strip())


def _escaped(text: str) -> str:
    """Markdown in which `<bot>` outside of code is not taken for HTML."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(p if p.startswith("`") else p.replace("<", "&lt;") for p in parts)


#: Where pieces lie, and how one is chosen.
_FOLDERS = {
    "methods": "Chosen by `method` in a recipe.",
    "evictions": "Chosen by `kv.eviction.name` in a recipe, and by `--compress`.",
    "data": "Chosen by `data.train` and `data.validation`.",
    "tasks": "Chosen by `--task`.",
    "latents": "How latents come about; a method imports one.",
    "losses": "Terms of the loss; a method imports them.",
}


def _plain(doc: str) -> str:
    """Return a docstring as Markdown, with each `name: what it is` as an item of a list."""
    return re.sub(r"^([a-z]+_\w+|[a-z]+)(: )(?=\S)", r"- `\1`\2", doc, flags=re.MULTILINE)


def _files(folder: str) -> list[str]:
    if folder == "data":  # the reader of files is no data set
        return data_sets()
    home = Path(importlib.import_module(f"kava.{PACKAGES[folder]}").__file__).parent
    return sorted(file.stem for file in home.glob("*.py") if not file.stem.startswith("_"))


def _commands(
    command: click.Command, words: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*words, name))


def _section(kind: type[Section], above: str, root: str) -> str:
    """A table of one section's keys, and then its sections; `root` is the whole recipe's class."""
    doc = _plain(inspect.getdoc(kind) or "")
    rows, inner = [], []
    for name, field in kind.model_fields.items():
        key = above + (field.alias or name)
        section = _as_section(field.annotation)
        if section is not None:
            inner.append((section, key))
            continue
        values = _type(field.annotation) + _bounds(field)
        rows.append((f"`{key}`", told(root, key), values, _default(field)))
    parts = [doc, ""] if doc else []
    if rows:
        headings = ("key", "what it is", "values", "default")
        parts += [markdown_table(headings, rows, left=range(len(headings))), ""]
    for section, key in inner:
        parts += [f"**`{key}`**\n", _section(section, f"{key}.", root)]
    return "\n".join(parts)


def _as_section(annotation: Any) -> type[Section] | None:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return None


def _type(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        words = [_type(part) for part in arguments if part is not type(None)]
        return " or ".join(words) + (" or null" if type(None) in arguments else "")
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "mapping"
    named = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return named.get(annotation, str(annotation))


_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def _bounds(field: FieldInfo) -> str:
    found = [
        f"{sign} {getattr(limit, name):.10g}"
        for limit in field.metadata
        for name, sign in _SIGNS.items()
        if getattr(limit, name, None) is not None
    ]
    return f" {', '.join(found)}" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "must be given"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return "null" if value is None else "empty"
    return f"`{_shown(value)}`"


def _shown(value: Any) -> str:
    """As YAML has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for file, text in pages().items():
        write_whole(folder / file, text)
        print(folder / file)
