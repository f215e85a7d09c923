"""File references: a path or a pattern, optionally followed by a line range.

`~` is the home folder. A pattern contains `*`, `?` or `[...]`, and `**` for any number of folders. It matches hidden
files only if the part of the pattern begins with a dot. It never leaves the folder where the pattern begins: links and
`..` that lead out match nothing, because a cloned repository may contain any link. `**` follows no links, so cycles of
links are harmless. Line ranges are `file:10-80`, `file:10`, `file:10-` and `file:-80`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from quant.safe_files import is_regular_file
from qwchat.characters import sanitise
from qwchat.errors import UsageError
from qwchat.text_files import expand_path, real_path

MAX_MATCHES = 100  # Files that one pattern may match.
MAX_ENTRIES = 20_000  # Directory entries that one pattern may visit, so that a search of / ends.

_RANGE = re.compile(r"(.+):(\d{1,9}|\d{1,9}-\d{1,9}|\d{1,9}-|-\d{1,9})", re.DOTALL)  # No file has a billion lines.
_WILDCARD = re.compile(r"[*?]|\[[^]]+\]")


@dataclass(frozen=True)
class LineRange:
    """Lines `first` to `last`, counted from 1 and inclusive. `last` None means the end of the file."""

    first: int = 1
    last: int | None = None

    def __str__(self) -> str:
        if self.last is None:
            return f"{self.first}-"
        return f"{self.first}-{self.last}" if self.last != self.first else f"{self.first}"


@dataclass(frozen=True)
class FileReference:
    """A file that was named.

    Attributes:
        path: where it is.
        name: its name in a message.
        lines: the lines wanted; None means the whole file.
    """

    path: Path
    name: str
    lines: LineRange | None = None


@dataclass(frozen=True)
class FileMatches:
    """The files that a name refers to. `by_pattern`: they were found by a pattern, not named one by one."""

    files: tuple[FileReference, ...]
    by_pattern: bool = False


def is_pattern(name: str) -> bool:
    """Return whether `name` is a pattern, unless a file has that very name."""
    return bool(_WILDCARD.search(name))


def safe_name(name: str) -> str:
    """Return a file name for one line of text, without control characters, line breaks and surrogates."""
    whole = os.fsencode(name).decode("utf-8", "replace")
    return sanitise(whole).replace("\n", "␊").replace("\t", "␉")


def find_files(name: str) -> FileMatches | None:
    """Find the files that `name` refers to, including folders and devices.

    A file with that exact name takes precedence over a line range, and both over a pattern.

    Returns:
        The matches; None if nothing matches.

    Raises:
        UsageError: the line range is reversed, or the pattern matches too much.
    """
    if _exists(name):
        return FileMatches((FileReference(expand_path(name), safe_name(name)),))
    ranged = _RANGE.fullmatch(name)
    base, lines = (name, None) if ranged is None else (ranged[1], ranged[2])
    if ranged is not None and _exists(base):
        return FileMatches((FileReference(expand_path(base), safe_name(base), _parse_range(name, ranged[2])),))
    if not is_pattern(base):
        return None
    wanted = None if lines is None else _parse_range(name, lines)
    found = tuple(FileReference(expand_path(shown), safe_name(shown), wanted) for shown in expand_pattern(base))
    return FileMatches(found, by_pattern=True) if found else None


def expand_pattern(pattern: str) -> list[str]:
    """Return the files that match, sorted, with names as the pattern spells them.

    Raises:
        UsageError: the pattern matches or visits too many files.
    """
    start = "/" if pattern.startswith("/") else ""
    parts = [part for part in pattern.split("/") if part]
    parts = [part for number, part in enumerate(parts) if part != "**" or parts[number - 1 : number] != ["**"]]
    if parts and parts[0].startswith("~"):
        start, parts = parts[0] + "/", parts[1:]
    budget = [MAX_ENTRIES]
    found: set[str] = set()
    for name in _walk(start, parts, budget):
        found.add(name)
        if len(found) > MAX_MATCHES:
            raise UsageError(f"{safe_name(pattern)} matches more than {MAX_MATCHES} files: use a narrower pattern")
    if budget[0] < 0:
        raise UsageError(
            f"{safe_name(pattern)} searches more than {MAX_ENTRIES:,} files and folders: use a narrower pattern"
        )
    return sorted(found)


def walk_files(folder: str, max_entries: int = 2_000) -> Iterator[str]:
    """Yield the files in the subfolders of `folder`, by relative path. Hidden and unprintable names are skipped.

    Args:
        folder: where to begin, with a slash at its end; "" is the current folder.
        max_entries: how many directory entries to visit.
    """
    budget = [max_entries]
    waiting = [""]
    while waiting and budget[0] > 0:
        at = waiting.pop(0)
        for entry in _entries(folder + at, budget):
            if entry.name.startswith(".") or not entry.name.isprintable():
                continue
            if entry.is_dir(follow_symlinks=False):
                waiting.append(at + entry.name + "/")
            elif at:
                yield at + entry.name


def _parse_range(name: str, wanted: str) -> LineRange:
    first, dash, last = wanted.partition("-")
    low = int(first or 1)
    high = int(last) if last else None if dash else low
    if low < 1 or (high is not None and high < low):
        raise UsageError(f"{safe_name(name)} is not a valid line range: use FIRST-LAST, counted from 1")
    return LineRange(low, high)


def _exists(name: str) -> bool:
    try:
        return bool(name) and expand_path(name).exists()
    except (OSError, ValueError):  # The name is too long, or contains a NUL.
        return False


def _walk(folder: str, parts: Sequence[str], budget: list[int], root: Path | None = None) -> Iterator[str]:
    """Yield the files below a folder that match the parts of a pattern, until the budget is used up.

    Args:
        folder: "" or a path with a slash at its end.
        parts: the rest of the pattern.
        budget: one number, the directory entries that may still be visited.
        root: the resolved folder that no match may leave; None before the first wildcard.
    """
    if not parts:
        return
    part, rest = parts[0], parts[1:]
    if part != "**" and not is_pattern(part):
        whole = folder + part
        if root is not None and not _is_inside(whole, root):
            return
        if rest:
            yield from _walk(whole + "/", rest, budget, root)
        elif is_regular_file(expand_path(whole)):
            yield whole
        return
    root = real_path(expand_path(folder or ".")) if root is None else root
    if part == "**":
        yield from _walk(folder, rest or ["*"], budget, root)
    for entry in _entries(folder, budget):
        if entry.name.startswith(".") and not part.startswith("."):
            continue
        if part == "**":
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder + entry.name + "/", parts, budget, root)
        elif fnmatchcase(entry.name, part) and (not entry.is_symlink() or _is_inside(folder + entry.name, root)):
            if rest and _is_folder(entry):
                yield from _walk(folder + entry.name + "/", rest, budget, root)
            elif not rest and is_regular_file(expand_path(folder + entry.name)):
                yield folder + entry.name


def _is_inside(name: str, root: Path) -> bool:
    """Return whether `name` lies in `root` once all links are resolved."""
    return real_path(expand_path(name)).is_relative_to(root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A cycle of links, or a link into a folder without permission.
        return False


def _entries(folder: str, budget: list[int]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(expand_path(folder or ".")) as found:
            entries = []
            for entry in found:
                budget[0] -= 1
                if budget[0] < 0:
                    break
                entries.append(entry)
    except OSError:  # A folder that cannot be read counts as empty.
        return []
    return sorted(entries, key=lambda entry: entry.name)
