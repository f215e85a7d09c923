"""A case: files that may be hostile, and the command lines that read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OK, RUNTIME, USAGE, MODEL, TOO_LONG, MEMORY, CONSTRAINT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 5, 6, 130, 141


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """A FIFO that no process writes to."""


@dataclass(frozen=True)
class Folder:
    """An empty folder."""


@dataclass(frozen=True)
class Sparse:
    """A file that begins with `head` and goes on with zeros up to `size` bytes, which take no place on the disk."""

    head: bytes
    size: int


@dataclass(frozen=True)
class Mode:
    """Bytes with other permissions than 0600."""

    data: bytes
    mode: int


Content = bytes | Link | Pipe | Folder | Sparse | Mode
Files = dict[str, Content]


@dataclass(frozen=True)
class Command:
    """One run of the program.

    Attributes:
        arguments: the command line without the program's name; `{case}` stands for the folder of the case.
        codes: exit codes that are right.
        text: what standard output must be, where that is known.
        json: whether standard output is JSON where the exit code is 0, in which case it holds no control characters.
        harmless: a file, relative to the folder of the case, that must hold no control characters afterwards.
        stdin: what is piped in.
        closed: "reader" where standard output is a pipe that its reader has closed, "descriptor" where there is none.
        most_lines: that standard error may have.
    """

    arguments: tuple[str, ...]
    codes: frozenset[int]
    text: str | None = None
    json: bool = False
    harmless: str | None = None
    stdin: bytes = b""
    closed: str = ""
    most_lines: int = 12


@dataclass(frozen=True)
class Case:
    """What one case writes and runs.

    Attributes:
        surface: what is attacked.
        number: of the case within its surface.
        title: how the case was made, for reports.
        files: path, relative to the folder of the case, to content. `work/` is the working folder.
        commands: what is run, one after the other.
        environment: variables besides those that lead into the folder of the case; `{case}` as above.
        copies: folders to copy (to, from), before `files` are written over them.
        forbidden: folders and files that must not be opened, nor anything in them.
        fresh: whether each command runs in an interpreter of its own, which imports everything in the working folder
            of the case.
    """

    surface: str
    number: int
    title: str
    files: Mapping[str, Content]
    commands: tuple[Command, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[tuple[str, Path], ...] = ()
    forbidden: tuple[str, ...] = ("secret",)
    fresh: bool = False


def command(*arguments: str, codes: Iterable[int], **more: object) -> Command:
    """A command with its right exit codes."""
    return Command(arguments, frozenset(codes), **more)  # type: ignore[arg-type]


def write(case: Case, root: Path) -> None:
    """Write the files of a case under `root`, which is empty."""
    for folder in ("work", "home", "tmp", "secret"):
        (root / folder).mkdir()
    (root / "secret" / "canary").write_bytes(b"never read\n")
    for destination, source in case.copies:
        folder = root / destination
        folder.mkdir(parents=True)
        for path in sorted(source.iterdir()):
            (folder / path.name).write_bytes(path.read_bytes())
    for name, content in case.files.items():
        _write_one(root / name, content)


def _write_one(path: Path, content: Content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
        path.chmod(0o600)
    elif isinstance(content, Mode):
        path.write_bytes(content.data)
        path.chmod(content.mode)
    elif isinstance(content, Link):
        path.symlink_to(content.target)
    elif isinstance(content, Pipe):
        os.mkfifo(path)
    elif isinstance(content, Folder):
        path.mkdir()
    else:
        path.write_bytes(content.head)
        os.truncate(path, content.size)


def environment(case: Case, root: Path) -> dict[str, str]:
    """The environment of every command of a case: its folders are all under `root`."""
    own = {
        "HOME": str(root / "home"),
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "TERM": "xterm-256color",
        "TMPDIR": str(root / "tmp"),
        "XDG_CONFIG_HOME": str(root / "home" / "config"),
        "XDG_DATA_HOME": str(root / "home" / "data"),
        "XDG_STATE_HOME": str(root / "home" / "state"),
        "XDG_CACHE_HOME": str(root / "home" / "cache"),
        "QWCHAT_CACHE": str(root / "cache"),
        "QWCHAT_CONFIG": str(root / "config"),
        "QWCHAT_MODELS": str(root / "models"),
        "QWCHAT_SESSIONS": str(root / "sessions"),
        "QWCHAT_THREADS": "1",
    }
    own |= {name: in_case_folder(text, root) for name, text in case.environment.items()}
    return {name: text for name, text in own.items() if text}


def in_case_folder(text: str, root: Path) -> str:
    """`text` with the folder of the case for `{case}`."""
    return text.replace("{case}", str(root))
