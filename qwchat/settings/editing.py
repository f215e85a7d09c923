"""Changing a configuration file: one key at a time, with every comment and every other line as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwchat.errors import UsageError
from qwchat.settings import files
from qwchat.settings.kinds import Value
from qwchat.settings.knobs import KNOBS, Knob
from qwchat.writing import replace_text

_HEAD = """\
# Settings of qwchat. A line counts without its #; `qwchat config check` looks for mistakes, `qwchat config show` shows
# which value holds and why. Flags and QWCHAT_... variables are stronger than this file.
"""


def change(path: Path, known: Knob, value: Value) -> None:
    """Write `value` for a knob into the file at `path`, which is made if it is not there.

    Raises UsageError where the file is no TOML or cannot be written.
    """
    document = _opened(path)
    document[known.name] = known.stored(value)
    write(path, _dumped(document))


def remove(path: Path, known: Knob) -> bool:
    """Take a knob out of the file at `path`; whether it was there. Raises UsageError as `change` does."""
    document = _opened(path)
    if known.name not in document:
        return False
    del document[known.name]
    write(path, _dumped(document))
    return True


def template(*, project: bool) -> str:
    """A file that says what could stand in it, every line a comment; for a `project` what such a file may set."""
    lines = [_HEAD]
    for known in KNOBS:
        if project and not known.project:
            continue
        example = known.stored(known.default) if known.default is not None or known.nothing else None
        shown = _dumped({known.name: example}).strip() if example is not None else f"{known.name} = "
        lines.append(f"# {known.help}: {known.limits}.\n#{shown}\n")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Replace the file at `path` as a whole, through links, readable for its owner and whoever could read it before.

    Raises UsageError where that cannot be done.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        replace_text(target, text, mode)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _opened(path: Path) -> Any:
    import tomlkit

    if not path.exists():
        return tomlkit.document()
    return tomlkit.parse(files.read(path).text)  # What read() let through is TOML.


def _dumped(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
