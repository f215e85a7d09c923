"""Calls, environment variables and numbers that only one module may contain."""

from __future__ import annotations

import ast
import operator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
OPERATORS = {ast.LShift: operator.lshift, ast.Pow: operator.pow, ast.Sub: operator.sub, ast.Add: operator.add}
KEEPERS = {
    "mkstemp": "quant/safe_files.py",  # Replacing a file atomically.
    "NamedTemporaryFile": "quant/safe_files.py",
    "geteuid": "quant/safe_files.py",  # Checking that a file is private.
    "S_IWOTH": "quant/safe_files.py",
    "sched_getaffinity": "quant/machine.py",
    "cpu_count": "quant/machine.py",
}
"""Attribute or import -> the only module that may use it."""
WORDS = {
    "VISUAL": "qwchat/chat/editor/external_editor.py",
    "EDITOR": "qwchat/chat/editor/external_editor.py",
    "MemTotal": "qwchat/cpu/memory.py",
    "MemAvailable": "qwchat/cpu/memory.py",
    "KiB": "quant/units.py",
    "MiB": "quant/units.py",
    "kB": "quant/units.py",
    "GB": "quant/units.py",
}
"""String constant -> the only module that may contain it."""
NUMBERS = {2**64, 2**64 - 1, 2**31, 2**31 - 1, 128 << 20}
"""Limits of `qwchat.limits` that do not equal other numbers."""


@cache
def parsed(folder: str) -> list[tuple[str, ast.Module]]:
    """Return each source file below `folder` with its syntax tree."""
    files = sorted((REPOSITORY / folder).rglob("*.py"))
    return [(file.relative_to(REPOSITORY).as_posix(), ast.parse(file.read_text(encoding="utf-8"))) for file in files]


def sources(*folders: str) -> list[tuple[str, ast.Module]]:
    return [each for folder in folders for each in parsed(folder)]


def value_of(node: ast.AST) -> int | None:
    """Return the integer of a constant expression such as 2**64 - 1 or 1 << 20, or None."""
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = value_of(node.left), value_of(node.right)
        if left is not None and right is not None and 0 <= right < 2**16:
            return int(OPERATORS[type(node.op)](left, right))
    return None


def names_in(tree: ast.AST) -> set[str]:
    attributes = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return attributes | {alias.name for node in imports for alias in node.names}


@pytest.mark.parametrize("name", KEEPERS)
@pytest.mark.slow
def test_each_call_is_used_in_one_module(name: str) -> None:
    users = [file for file, tree in sources("qwchat", "quant", "benchmarks") if name in names_in(tree)]
    assert users in ([KEEPERS[name]], [])


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.slow
def test_each_constant_is_used_in_one_module(word: str) -> None:
    users = [
        file
        for file, tree in sources("qwchat", "quant")
        if any(isinstance(node, ast.Constant) and node.value == word for node in ast.walk(tree))
    ]
    assert users == [WORDS[word]]


@pytest.mark.slow
def test_sizes_are_formatted_in_one_module() -> None:
    """Find a unit right after a value in a message, such as f"{size >> 20} MiB"."""
    strays = []
    for file, tree in sources("qwchat", "quant"):
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)):
            for value, text in zip(node.values, node.values[1:], strict=False):
                first = str(getattr(text, "value", "")).split()[:1] if isinstance(value, ast.FormattedValue) else []
                if first and first[0].strip(",.;:()") in ("kB", "MB", "GB", "TB", "KiB", "MiB", "GiB"):
                    strays.append(f"{file}:{node.lineno}")
    # The hint rounds the limit of a terminal down.
    assert [
        stray for stray in strays if not stray.startswith(("quant/units.py", "qwchat/chat/view/clipboard.py"))
    ] == []


def test_shared_limits_are_defined_in_one_module() -> None:
    strays = [
        f"{file}:{node.lineno}"
        for file, tree in sources("qwchat")
        if file != "qwchat/limits.py" and "/kernels/" not in file
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp | ast.Constant) and value_of(node) in NUMBERS
    ]
    assert strays == []


def test_no_two_modules_define_the_same_limit() -> None:
    seen: dict[tuple[str, int], str] = {}
    twice = []
    for file, tree in sources("qwchat", "quant"):
        for node in tree.body:
            value = value_of(node.value) if isinstance(node, ast.Assign) else None
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if value is None or value <= 1 or not isinstance(target, ast.Name):
                    continue
                name = target.id.strip("_")
                if any(part in ("MAX", "MOST", "LIMIT", "LONGEST", "DEEPEST") for part in name.split("_")):
                    other = seen.setdefault((name, value), file)
                    if other != file:
                        twice.append(f"{name} in {other} and {file}")
    assert twice == []


def test_no_module_re_exports_a_name() -> None:
    """Import each name from the module that defines it, never with `from a import b as b`."""
    strays = [
        f"{file}:{node.lineno}"
        for file, tree in sources("qwchat", "quant")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname == alias.name
    ]
    assert strays == []
