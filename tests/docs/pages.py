"""The documentation as the tests read it: pages, their fenced blocks, and the environment that commands run in."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
DOCS = REPOSITORY / "docs"
NOT_RUN = "With "
"""Blocks whose title begins so need a model, a terminal or a network, and say so to the reader; no test runs them."""

_FENCE = re.compile(r"( *)(`{3,})\s*(\w*)(?:\s+title=\"([^\"]*)\")?\s*")
_PROGRAM = "from qwchat.cli.main import main; main()"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    text: str

    @property
    def runs(self) -> bool:
        """Whether a test runs the block."""
        return not self.title.startswith(NOT_RUN)

    @property
    def place(self) -> str:
        """Page and line, as the name of a test."""
        return f"{self.page}:{self.line}"


def nav() -> list[str]:
    """Return the pages of the site's navigation, in their order."""
    text = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    return re.findall(r"([\w/-]+\.md)$", text[text.index("\nnav:") :], re.MULTILINE)


def blocks(file: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a Markdown file."""
    lines = iter(enumerate(file.read_text(encoding="utf-8").splitlines(), 1))
    page = file.relative_to(REPOSITORY).as_posix()
    for number, line in lines:
        opened = _FENCE.fullmatch(line)
        if opened is None:
            continue
        indent, fence, language, title = opened.groups()
        body = []
        for _, inner in lines:
            if inner.strip() == fence:
                break
            body.append(inner.removeprefix(indent))
        yield Block(page, number, language, title or "", "\n".join(body))


def without_blocks(text: str) -> str:
    """Return Markdown without its fenced blocks and comments."""
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    return re.sub(r"^( *)(`{3,})[^`]*$.*?^\1\2$", "", text, flags=re.MULTILINE | re.DOTALL)


def place_program(folder: Path) -> None:
    """Write an executable `qwchat` that runs this checkout, whatever the folder that it is started in."""
    python = f"PYTHONPATH={shlex.quote(str(REPOSITORY))} exec {shlex.quote(sys.executable)}"
    script = folder / "qwchat"
    script.write_text(f'#!/bin/sh\n{python} -P -c "{_PROGRAM}" "$@"\n')
    script.chmod(0o755)
