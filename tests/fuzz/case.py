"""Cases: files that may be hostile, and the command lines that read them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

OK, RUNTIME, USAGE, MODEL, TOO_LONG, MEMORY, CONSTRAINT, INTERRUPTED, BROKEN_PIPE = 0, 1, 2, 3, 4, 5, 6, 130, 141


@dataclass(frozen=True)
class Link:
    """Symbolic link."""

    target: str


@dataclass(frozen=True)
class Pipe:
    """FIFO that no process writes to."""


@dataclass(frozen=True)
class Folder:
    """Empty folder."""


@dataclass(frozen=True)
class Sparse:
    """File that begins with `head`, followed by zeros up to `size` bytes, which take no space on disk."""

    head: bytes
    size: int


@dataclass(frozen=True)
class Mode:
    """File with other permissions than 0600."""

    data: bytes
    mode: int


Content = bytes | Link | Pipe | Folder | Sparse | Mode
Files = dict[str, Content]


@dataclass(frozen=True)
class Command:
    """One run of the program.

    Attributes:
        arguments: command line without the program's name; `{case}` stands for the folder of the case.
        codes: exit codes that are correct.
        text: expected standard output, if it is known.
        json: True if standard output must be JSON without control characters when the exit code is 0.
        harmless: file, relative to the folder of the case, that must not contain control characters afterwards.
        stdin: standard input.
        closed: "reader" if standard output is a pipe whose reader has closed it, "descriptor" if it is not open.
        most_lines: limit on the lines of standard error.
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
    """Files and commands of one case.

    Attributes:
        surface: surface under attack.
        number: number of the case within its surface.
        title: how the case was made, for reports.
        files: contents by path, relative to the folder of the case. `work/` is the working folder.
        commands: commands to run in this order.
        environment: variables besides those that point to the folder of the case; `{case}` as in `Command`.
        copies: folders to copy (to, from) before `files` are written over them.
        forbidden: files and folders that must not be opened.
        fresh: True to run each command in a new interpreter, whose imports happen in the working folder of the case.
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
    """Return a command with its correct exit codes."""
    return Command(arguments, frozenset(codes), **more)  # type: ignore[arg-type]


def write(case: Case, root: Path) -> None:
    """Write the files of a case under the empty folder `root`."""
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
    """Return the environment of the commands of a case, whose folders are all under `root`."""
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
    """Return `text` with `{case}` replaced by the folder of the case."""
    return text.replace("{case}", str(root))
