"""Another program that edits text: the person's own editor, for a message and for a file of settings."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qwchat.chat.editor.terminal_modes import lend_terminal
from qwchat.errors import QwchatError

_COMMON_EDITORS = ("editor", "nano", "vi", "emacs")


def editor_command(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the editor of $VISUAL or $EDITOR with its arguments, or one that is usually installed.

    Raises QwchatError if the variable is not a command, or no editor is found.
    """
    for name in ("VISUAL", "EDITOR"):
        value = environment.get(name, "").strip()
        if value:
            try:
                return shlex.split(value)
            except ValueError as error:
                raise QwchatError(f"${name} cannot be read ({error}): set it to a command") from error
    for name_of_editor in _COMMON_EDITORS:
        path_of_editor = shutil.which(name_of_editor)
        if path_of_editor is not None:
            return [path_of_editor]
    raise QwchatError("there is no editor: set $EDITOR to one")


def edit_file(path: Path, state_of_text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Let the person change the file `path` in an editor, which has the terminal meanwhile.

    Args:
        path: the file.
        state_of_text: what a message says about the text if the editor fails, as in "the message is as it was".
        environment: VISUAL and EDITOR are read.

    Raises:
        QwchatError: there is no editor, it cannot be run, or it fails.
    """
    program = editor_command(environment)
    try:
        with lend_terminal():
            status = subprocess.run([*program, str(path)], check=False).returncode
    except OSError as error:
        raise QwchatError(f"cannot run {program[0]}: {error.strerror}: set $EDITOR to an editor") from error
    if status:
        raise QwchatError(f"{program[0]} failed with exit code {status}: {state_of_text}")


def edit_text(text: str, environment: Mapping[str, str] = os.environ) -> str:
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
