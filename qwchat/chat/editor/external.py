"""Another program that edits text: the person's own editor, for a message and for a file of settings."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qwchat.chat.editor.modes import terminal_lent
from qwchat.errors import QwchatError

_USUAL = ("editor", "nano", "vi", "emacs")


def command(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the editor of $VISUAL or $EDITOR with its arguments, or one that is usually installed.

    Raises QwchatError if the variable is not a command, or no editor is found.
    """
    for name in ("VISUAL", "EDITOR"):
        wanted = environment.get(name, "").strip()
        if wanted:
            try:
                return shlex.split(wanted)
            except ValueError as error:
                raise QwchatError(f"${name} cannot be read ({error}): set it to a command") from error
    for usual in _USUAL:
        found = shutil.which(usual)
        if found is not None:
            return [found]
    raise QwchatError("there is no editor: set $EDITOR to one")


def edit_file(path: Path, left: str, environment: Mapping[str, str] = os.environ) -> None:
    """Let the person change the file `path` in an editor, which has the terminal meanwhile.

    Args:
        path: the file.
        left: what a message says about the text if the editor fails, as in "the message is as it was".
        environment: VISUAL and EDITOR are read.

    Raises:
        QwchatError: there is no editor, it cannot be run, or it fails.
    """
    program = command(environment)
    try:
        with terminal_lent():
            status = subprocess.run([*program, str(path)], check=False).returncode
    except OSError as error:
        raise QwchatError(f"cannot run {program[0]}: {error.strerror}: set $EDITOR to an editor") from error
    if status:
        raise QwchatError(f"{program[0]} failed with exit code {status}: {left}")


def edited(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return `text` after the person has changed it in an editor. Raises QwchatError as `edit_file`, or for no text."""
    unchanged = "the message is as it was"
    folder = tempfile.mkdtemp(prefix="qwchat-")  # Readable for its owner only, as are copies that editors leave there.
    try:
        path = Path(folder) / "message.md"
        path.write_text(text + "\n" if text else "", encoding="utf-8", newline="\n", errors="replace")
        edit_file(path, unchanged, environment)
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QwchatError(f"cannot read back what the editor wrote: {unchanged}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
