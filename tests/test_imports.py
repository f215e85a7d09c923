"""No circular imports in the two packages: not within a folder, and not inside functions."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGES = ("quant", "qwchat")


def modules(root: Path) -> dict[str, Path]:
    """Return the modules of the packages under `root`: dotted name -> file."""
    found = {}
    for package in PACKAGES:
        for file in (root / package).rglob("*.py"):
            parts = file.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


def executed(node: ast.AST) -> Iterator[ast.AST]:
    """Yield `node` and its descendants, without those under `if TYPE_CHECKING`."""
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test).rpartition(".")[2] == "TYPE_CHECKING":
            for other in child.orelse:
                yield from executed(other)
        else:
            yield from executed(child)


def imports(name: str, source: str, known: Mapping[str, Path]) -> set[str]:
    """Return the modules in `known` that module `name` imports, by statements or by their names.

    `from package import module` imports the module, not the package: the package's own file is loaded first in any
    case. A string such as "qwchat.cli.chat:run" counts as an import.
    """
    found: set[str] = set()
    tree = ast.parse(source)
    by_name = any(isinstance(node, ast.Attribute) and node.attr == "import_module" for node in ast.walk(tree))
    for node in executed(tree):
        if isinstance(node, ast.Import):
            found.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: imports are absolute"
            inside = {each.name: f"{node.module}.{each.name}" for each in node.names}
            found.update(full if full in known else str(node.module) for full in inside.values())
        elif by_name and isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return (found & {*known}) - {name}


def circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circular import, with the first one repeated at the end, or an empty list."""
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(reversed(error.args[1]))
    return []


def circles(graph: Mapping[str, set[str]]) -> list[str]:
    """Return all circular imports as "a -> b -> a"; one import of each is ignored to find the next."""
    left = {name: set(imported) for name, imported in graph.items()}
    found = []
    while round_trip := circle(left):
        found.append(" -> ".join(round_trip))
        left[round_trip[0]].remove(round_trip[1])
    return found


def test_no_module_imports_itself_through_others() -> None:
    known = modules(REPOSITORY)
    graph = {name: imports(name, file.read_text("utf-8"), known) for name, file in known.items()}
    assert "qwchat.cli.chat" in graph["qwchat.cli.command_table"], "commands are imported by name"
    assert "qwchat.cli.app" in graph["qwchat.cli.main"], "imports within functions count"
    assert circles(graph) == []


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        ("import quant.b\n", "from quant import a\n", True),
        ("from quant.b import x\n", "def late():\n    from quant.a import y\n", True),
        ("import importlib\nwork = 'quant.b:run'\nimportlib.import_module(work)\n", "import quant.a\n", True),
        ("from quant.b import x\n", "import typing\nif typing.TYPE_CHECKING:\n    from quant.a import y\n", False),
        ("from quant.b import x\n", "if TYPE_CHECKING:\n    pass\nelse:\n    from quant.a import y\n", True),
        ("from quant.b import x\n", "name = 'quant.a'\n", False),
    ],
)
def test_a_circular_import_is_found(one: str, other: str, found: bool) -> None:
    known = {"quant": Path(), "quant.a": Path(), "quant.b": Path()}
    graph = {"quant.a": imports("quant.a", one, known), "quant.b": imports("quant.b", other, known)}
    assert bool(circles(graph)) is found
