"""Find constructions that plain English does not need: `python -m tests.wording PATH...` lists them.

CONTRIBUTING.md has the rules. In Python files it checks strings, docstrings and comments, in Markdown files all lines.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

BANNED = {
    r"(?<!there )\bis no (?!longer\b|more than\b|less than\b|later\b|earlier\b)\w": "negate the verb: is not",
    r"\bthere (is|are|was|were) none\b": "there is no X",
    r"\b(go|goes|going|gone|went) on with\b": "continue",
    r"\bwhat (was|is|has been) (said|asked|held)\b": "name it: the reply, the prompt, the cached tokens",
    r"\b(no|some|any|every)body\b": "name who: the user, the program, a process",
    r"\b(anew|whom|whoever|whomever|wherein|whereof|thereof|therein|hereby|in vain|ere)\b": "a current word",
    r"\bin circles\b": "repeats itself",
    r"\b(wardrobe|furnish\w*|polite(ly)? (kill|end|stop)\w*|knobs?)\b": "the name without a metaphor",
    r"\bt(ake|akes|aken|ook|aking) along\b": "attach, include",
    r"\bno more\b(?! than)": "no longer, not any more",
    r"\bfor so many\b": "for N",
    r"\bg(ive|ives|ave|iving) way\b": "name what is left out",
    r"\bneither harms\b": "is harmless",
    r"\b(at|by) chance\b|\bchance is\b": "random",
    r"\bof whom\b|\bis asked of\b": "say who does what",
    r"\ball the same\b": "even so, or leave it out",
    r"\bcomes to nothing\b|\bdoes without a word\b|\bwith a word\b": "say what happens",
    r"\bin the place of\b": "instead of",
}
ONLY_PYTHON = {
    r"(?<!`)``(?!`)[^`\n]*[^`\n]``(?!`)": "single backticks",
    r"(?<!\")\brooms?\b": "remaining tokens, context budget, space",
}
NOT_IMPERATIVE = re.compile(
    r"(what|whether|who|whose|how|where|when|that|which|why|the|an?|one|its|each|all|every|those|these|this"
    r"|if|is|are|has|may|both|none|nothing|something)\b",
    re.IGNORECASE,
)


def _texts(path: Path, source: str) -> Iterator[tuple[int, str]]:
    """Yield strings and comments of a Python file, or the lines of any other, each with its line number."""
    if path.suffix != ".py":
        yield from enumerate(source.splitlines(), 1)
        return
    kinds = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in kinds:
            yield from enumerate(token.string.splitlines(), token.start[0])


def _docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the docstring of each function that is not a property, with its line number."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            marks = {ast.unparse(mark).rpartition(".")[2] for mark in node.decorator_list}
            text = ast.get_docstring(node)
            if text and not marks & {"property", "cached_property", "fixture", "fixture()"}:
                yield node.body[0].lineno, text


def findings(path: Path) -> Iterator[str]:
    """Yield the findings of a file as `path:line: construction (remedy)`."""
    source = path.read_text(encoding="utf-8")
    rules = BANNED | (ONLY_PYTHON if path.suffix == ".py" else {})
    for line, text in _texts(path, source):
        for pattern, remedy in rules.items():
            for found in re.finditer(pattern, text, re.IGNORECASE):
                yield f"{path}:{line}: {found[0]!r} ({remedy})"
    if path.suffix == ".py":
        for line, text in _docstrings(source):
            if first := NOT_IMPERATIVE.match(text):
                yield f"{path}:{line}: docstring begins with {first[0]!r} (begin with an imperative verb)"


def files(paths: list[Path]) -> Iterator[Path]:
    """Yield the Python and Markdown files of folders, and files as they are."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.suffix in (".py", ".md"))
        else:
            yield path


if __name__ == "__main__":
    found = [finding for file in files([Path(name) for name in sys.argv[1:]]) for finding in findings(file)]
    print(*found, f"{len(found)} findings", sep="\n")
    sys.exit(bool(found))
