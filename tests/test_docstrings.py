"""Docstrings name arguments and errors that exist, and begin with what a function does."""

import ast
import builtins
import re
from pathlib import Path

import pytest

import kava

PACKAGE = Path(kava.__file__).parent
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


MODULES = {
    str(file.relative_to(PACKAGE)): list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    for file in sorted(PACKAGE.rglob("*.py"))
}
ERRORS = {n.name for nodes in MODULES.values() for n in nodes if isinstance(n, ast.ClassDef)}
ERRORS |= {"SafetensorError", *dir(builtins)}


def entries(node, section):
    """The names in a section of a docstring, such as `a` and `b` of `a, b: two numbers`."""
    lines = re.search(rf"^{section}:\n((?:    .*\n?|\n)+)", ast.get_docstring(node), re.MULTILINE)
    heads = re.findall(r"^    (\w[\w, ]*):", lines[1], re.MULTILINE) if lines else []
    return {name.strip() for head in heads for name in head.split(",")}


def parameters(node):
    """The parameters of a function, or the fields and the parameters of a class."""
    if not isinstance(node, ast.ClassDef):
        every = ast.walk(node.args)
        return {argument.arg for argument in every if isinstance(argument, ast.arg)}
    fields = {n.target.id for n in node.body if isinstance(n, ast.AnnAssign)}
    inits = [n for n in node.body if getattr(n, "name", "") == "__init__"]
    return fields.union(*map(parameters, inits))


@pytest.mark.parametrize("module", MODULES)
def test_arguments_and_errors_in_docstrings_exist(module):
    for node in MODULES[module]:
        if not isinstance(node, DEFINITIONS) or not ast.get_docstring(node):
            continue
        assert not ast.get_docstring(node).startswith("Of "), node.name
        unknown = entries(node, "Args") - parameters(node)
        assert not unknown, f"{node.name} has no argument {unknown}"
        assert entries(node, "Raises") <= ERRORS, f"{node.name}: no such error"
