"""Which source files a unit is made of, and their digest; reads text, compiles nothing.

The digest shows that a unit was not compiled again after a change. It leaves out the files that all kernels share:
a change there is found by compiling everything again (`--check`).
"""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

FOLDER = Path(__file__).parent
_PACKAGE = "qwchat.cuda.kernels"
_SHARED = {"__init__", "__main__", "unit_catalogue", "instructions", "sources", "toolchain", "unit"}


def files_of(module: str) -> list[Path]:
    """Return the file of `module` and those it imports from this folder, sorted; without what all kernels share."""
    waiting, found = [module], set()
    while waiting:
        name = waiting.pop()
        if name not in found and name not in _SHARED:
            found.add(name)
            waiting += _imported(FOLDER / f"{name}.py")
    return [FOLDER / f"{name}.py" for name in sorted(found)]


def digest(module: str) -> str:
    """Return the SHA-256 of the names and texts of `files_of(module)`, in hexadecimal."""
    total = hashlib.sha256()
    for file in files_of(module):
        total.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def _imported(file: Path) -> list[str]:
    """Return the modules of this folder that `file` imports."""
    found = []
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == _PACKAGE:
            found += [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_PACKAGE + "."):
            found.append(str(node.module).removeprefix(_PACKAGE + "."))
    return found
