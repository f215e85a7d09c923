"""TOML of settings: limits that are checked before parsing, the parser, and line numbers of keys.

TOML parsers take quadratic time or worse in the parts of a dotted key, in nested values and in the number of tables.
Settings need none of these in large numbers, so one pass over the text counts them first. The pass distinguishes
strings and comments as the parser does, and reads each character once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from qwchat.errors import UsageError

MAX_KEY_PARTS = 4  # in a dotted key
MAX_NESTING = 8  # of lists and tables
MAX_KEYS = 1_000
MAX_TABLES = 50
MAX_BARE_CHARACTERS = 1_000  # in a number, a date or a key without quotes

# Possessive quantifiers never backtrack, so a match takes time linear in its length.
_TOKEN = re.compile(
    r"""
    (?P<text> \"{3}(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}
            | '{3}(?:[^']++|'{1,2}(?!'))*+'{3,5}
            | (?!\"{3}|'{3}) (?: "(?:[^"\\\n]++|\\[^\n])*+" | '[^'\n]*+' ) )
    | (?P<comment> \#[^\n]*+ )
    | (?P<blank> [\ \t\r]++ )
    | (?P<bare> [^\s"'\#=.,\[\]{}]++ )
    | (?P<sign> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_POSITION = re.compile(r" \(at line (\d+), column \d+\)| \(at end of document\)")
Key = tuple[str, ...]


def parse(text: str, where: str) -> dict[str, Any]:
    """Parse `text` as TOML within the limits, in linear time.

    Raises:
        UsageError: the text is invalid or exceeds a limit; the message begins with `where` and the line.
    """
    import tomllib

    _check_limits(text, where)
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = _POSITION.search(str(error))
        line = int(match[1]) if match and match[1] else text.count("\n") + 1
        reason = _POSITION.sub("", str(error))
        raise UsageError(f"{where}:{line}: {reason[:1].lower()}{reason[1:]}") from error
    except ValueError as error:  # An impossible date.
        raise UsageError(f"{where}: invalid value: {' '.join(str(error).split())}") from error


def line_of(text: str, keys: Key) -> int | None:
    """Return the line on which the key `keys`, or the table that contains it, begins; None if it is missing.

    `text` must have been parsed by `parse`.
    """
    found: dict[Key, int] = {}
    for key, line in _keys_with_lines(text):
        for length in range(1, len(key) + 1):
            found.setdefault(key[:length], line)
    return next((found[keys[:length]] for length in range(len(keys), 0, -1) if keys[:length] in found), None)


def _check_limits(text: str, where: str) -> None:
    """Raise UsageError if `text` is more complex than settings need and a parser can handle."""
    depth = parts = keys = tables = 0
    line, at_line_start = 1, True
    for match in _TOKEN.finditer(text):
        token = match[0]
        if match.lastgroup != "sign":
            if match.lastgroup == "bare" and len(token) > MAX_BARE_CHARACTERS:
                raise UsageError(
                    f"{where}:{line}: a word of {len(token):,} characters, more than {MAX_BARE_CHARACTERS:,}"
                )
            line += token.count("\n")
            at_line_start = at_line_start and match.lastgroup == "blank"
            continue
        if token in "\"'":
            return  # An unterminated string, where the parser stops too.
        if token in "[{":
            tables += token == "[" and at_line_start and depth == 0
            depth += 1
        elif token in "]}":
            depth = max(0, depth - 1)
        keys += token == "="
        parts = parts + 1 if token == "." else 0
        if token == "\n":
            line += 1
        # An unclosed bracket must not hide the tables after it, so tables are counted by line start alone.
        at_line_start = token == "\n"
        for count, limit, name in (
            (parts + 1, MAX_KEY_PARTS, "parts in one key"),
            (depth, MAX_NESTING, "levels of lists and tables"),
            (keys, MAX_KEYS, "keys"),
            (tables, MAX_TABLES, "tables"),
        ):
            if count > limit:
                raise UsageError(f"{where}:{line}: more than {limit:,} {name}")


def _keys_with_lines(text: str) -> Iterator[tuple[Key, int]]:
    """Yield each key and table of `text` with its line, in order, without keys of inline tables."""
    table: Key = ()
    parts: list[str] = []
    header = False  # inside [table]
    value = False  # after the equals sign
    depth = 0
    line = 1
    for match in _TOKEN.finditer(text):
        token, kind = match[0], match.lastgroup
        if kind == "bare" or kind == "text":
            if not value:
                parts.append(token if kind == "bare" else token[1:-1])
        elif kind == "sign":
            if token in "\"'":
                return
            if token == "\n" and depth == 0:
                parts, header, value = [], False, False
            elif token == "=" and not value and not header:
                yield (*table, *parts), line
                value = True
            elif token in "[{":
                header = header or not value
                depth += value
            elif token in "]}":
                if header:
                    if parts:
                        table = tuple(parts)
                        yield table, line
                    parts = []
                depth = max(0, depth - value)
        line += token.count("\n")
