"""Imports of the renderer: no more than text and the libraries that parse Markdown and code."""

from __future__ import annotations

import ast
from pathlib import Path

from qwchat import markdown

ROOM = Path(markdown.__file__).parent
NEIGHBOURS = {"qwchat.characters", "qwchat.markdown"}
OUTSIDE = {"os", "sys", "io", "subprocess", "socket", "shutil", "rich", "prompt_toolkit"}
"""What would read a stream, the environment or a terminal."""


def imported_modules(file: Path) -> set[str]:
    """Return the dotted names of the modules that `file` imports."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return names | {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}


def test_the_renderer_imports_neither_the_chat_nor_streams() -> None:
    files = sorted(ROOM.glob("*.py"))
    assert len(files) > 8
    for file in files:
        for name in imported_modules(file):
            top, _, rest = name.partition(".")
            assert top not in OUTSIDE, f"{file.name} imports {name}"
            own = f"{top}.{rest.partition('.')[0]}"
            assert top not in ("qwchat", "quant") or own in NEIGHBOURS, f"{file.name} imports {name}"
