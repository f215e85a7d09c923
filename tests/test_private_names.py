"""Private parts of libraries are used in one module per library, which has its own test."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
KEPT_IN = {
    "prompt_toolkit": "qwchat/chat/editor/toolkit.py",
    "pygments": "qwchat/markdown/lexing.py",
    "typer": "qwchat/cli/typer_internals.py",
}
"""Library -> the module that may use its private parts; tests/test_LIBRARY.py checks that they are there."""
BY_NAME = {"_loaded_strings": "prompt_toolkit", "_tokens": "pygments", "_runtime_param": "typer", "_getvalue": "numba"}
"""Private attributes whose library the source does not show."""
DOCUMENTED = {
    "prompt_toolkit": (
        *("application", "auto_suggest", "buffer", "completion", "document", "enums", "filters", "formatted_text"),
        *("history", "input", "key_binding", "keys", "layout", "layout.processors", "output", "output.win32"),
        *("shortcuts", "styles", "validation", "widgets"),
    )
}
"""Library -> its documented modules, if their names do not tell."""
UNDOCUMENTED_ATTRIBUTES = {"cpr_not_supported_callback": "prompt_toolkit", "input_queue": "prompt_toolkit"}
NAMED_TUPLE = {"_replace", "_asdict", "_fields", "_make"}

Finding = tuple[int, str, str]  # line, library, use


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined_attributes(tree: ast.AST) -> set[str]:
    """Return the attributes that the file itself defines on its objects."""
    stored = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        for child in node.body if isinstance(node, ast.ClassDef) else ():
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                stored.add(child.name)
            elif isinstance(child, ast.AnnAssign) and isinstance(child.target, ast.Name):
                stored.add(child.target.id)
            elif isinstance(child, ast.Assign):
                stored |= {target.id for target in child.targets if isinstance(target, ast.Name)}
    return stored


def is_library(name: str) -> bool:
    return bool(name) and name not in sys.stdlib_module_names and name not in ("qwchat", "quant")


def is_documented(node: ast.Import | ast.ImportFrom, name: str) -> bool:
    """Return True if `name` is imported from a documented module of its library."""
    library, _, module = ((node.module or "") if isinstance(node, ast.ImportFrom) else name).partition(".")
    return not module or module in DOCUMENTED[library]


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Return the library of each imported name in the file."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            top = node.module.partition(".")[0]
            found |= {alias.asname or alias.name: top for alias in node.names if is_library(top)}
        elif isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                if is_library(top):
                    found[alias.asname or top] = top
    return found


def root_of(node: ast.AST) -> str:
    """Return the name at the start of a chain of attributes, subscripts and calls."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def uses(source: str) -> Iterator[Finding]:
    """Yield the uses of private parts of libraries in `source`: imports, attributes, and assignments to them."""
    tree = ast.parse(source)
    own, imported = defined_attributes(tree), imported_names(tree)
    texts = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            prefix = f"{node.module}." if isinstance(node, ast.ImportFrom) and node.module else ""
            for alias in node.names:
                name = prefix + alias.name
                library = name.partition(".")[0]
                hidden = any(map(is_private, name.split(".")))
                hidden |= library in DOCUMENTED and not is_documented(node, alias.name)
                if is_library(library) and hidden:
                    yield node.lineno, library, name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
            library = imported.get(root_of(node.value), "")
            hidden = is_private(node.attr) and node.attr not in NAMED_TUPLE
            if library and (hidden or node.attr == "__mro__"):
                yield node.lineno, library, node.attr
            elif hidden and node.attr not in own:
                yield node.lineno, BY_NAME.get(node.attr, "unknown"), node.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            named = node.args[1]
            name = texts.get(named.id, "") if isinstance(named, ast.Name) else getattr(named, "value", "")
            if node.func.id in ("getattr", "setattr", "hasattr", "delattr") and is_private(str(name)):
                yield node.lineno, BY_NAME.get(str(name), "unknown"), str(name)
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [getattr(node, "target", None)]
        for target in targets:
            if isinstance(target, ast.Attribute | ast.Subscript) and root_of(target) in imported:
                yield target.lineno, imported[root_of(target)], ast.unparse(target)
        if isinstance(node, ast.Attribute) and node.attr in UNDOCUMENTED_ATTRIBUTES:
            yield node.lineno, UNDOCUMENTED_ATTRIBUTES[node.attr], node.attr


def pinned_to_a_minor_version() -> set[str]:
    """Return the dependencies that pyproject.toml pins to a minor version, such as >=0.68.1,<0.69."""
    text = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(r'^    "([\w-]+)>=(\d+)\.(\d+)[\d.]*,<(\d+)\.(\d+)"', text, re.MULTILINE)
    pinned = {name for name, *version, top, end in found if [top, str(int(end) - 1)] == version}
    return pinned | ({"llvmlite"} if "numba" in pinned else set())  # Numba pins its version.


@pytest.mark.slow
def test_private_parts_are_used_in_one_module_per_library() -> None:
    allowed, pinned, strays = {**KEPT_IN}, pinned_to_a_minor_version(), []
    assert "numba" in pinned
    assert "rich" not in pinned
    for folder in ("qwchat", "quant"):
        for file in sorted((REPOSITORY / folder).rglob("*.py")):
            name = file.relative_to(REPOSITORY).as_posix()
            for line, library, what in uses(file.read_text(encoding="utf-8")):
                if library not in pinned and allowed.get(library) != name:
                    strays.append(f"{name}:{line}: {library}: {what}")
    assert strays == []


@pytest.mark.parametrize("library", KEPT_IN)
def test_each_module_of_private_parts_has_a_test_and_a_reason(library: str) -> None:
    source = (REPOSITORY / KEPT_IN[library]).read_text(encoding="utf-8")
    assert [found for found in uses(source) if found[1] == library], "it uses nothing private: remove the entry"
    assert (REPOSITORY / "tests" / f"test_{library}.py").exists()
    assert f"tests/test_{library}.py" in source


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from pygments.token import Error, _TokenType", "pygments.token._TokenType"),
        ("from typer._click import core", "typer._click.core"),
        ("import typer._click.core", "typer._click.core"),
        ("from prompt_toolkit.input.typeahead import get_typeahead", "prompt_toolkit.input.typeahead.get_typeahead"),
        ("def f(lexer):\n    return lexer._tokens", "_tokens"),
        ("import rich\nrich._console = None", "rich._console"),
        ("import rich\nrich.get_console = None", "rich.get_console"),
        ("from rich.table import ROWS\nROWS['x'] += 1", "ROWS['x']"),
        ("import typer\nbase = typer.Exit.__mro__[2]", "__mro__"),
        ("NAME = '_runtime_param'\ndef f(x):\n    setattr(x, NAME, 1)", "_runtime_param"),
        ("def f(app):\n    app.renderer.cpr_not_supported_callback = None", "cpr_not_supported_callback"),
        ("class A:\n    def __init__(self):\n        self._x = 1\n    def twin(self, o):\n        return o._x", None),
        ("from collections import namedtuple\ndef f(t):\n    return t._replace(a=1)", None),
        ("from prompt_toolkit.input import Input", None),
    ],
)
def test_uses_of_private_parts_are_found(source: str, found: str | None) -> None:
    assert sorted({what for _, _, what in uses(source)}) == ([found] if found else [])
