"""The user's own editor, for a message and for a settings file."""

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
    """Return the command line of $VISUAL or $EDITOR, or of an editor that is usually installed.

    Raises:
        QwchatError: If the variable is not a command, or no editor is found.
    """
    for name in ("VISUAL", "EDITOR"):
        value = environment.get(name, "").strip()
        if value:
            try:
                return shlex.split(value)
            except ValueError as error:
                raise QwchatError(f"${name} is not a valid command line ({error}): correct it") from error
    for name in _COMMON_EDITORS:
        found = shutil.which(name)
        if found is not None:
            return [found]
    raise QwchatError("no editor found: set $EDITOR to one")


def edit_file(path: Path, state_of_text: str, environment: Mapping[str, str] = os.environ) -> None:
    """Let the user edit the file `path` in an editor, which uses the terminal meanwhile.

    Args:
        path: The file.
        state_of_text: End of the error message if the editor fails, such as "the message is unchanged".
        environment: Variables; VISUAL and EDITOR are read.

    Raises:
        QwchatError: If there is no editor, or it cannot be started or fails.
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
    """Return `text` as edited by the user.

    Raises:
        QwchatError: As `edit_file`, or if the result is not UTF-8 text.
    """
    unchanged = "the message is unchanged"
    folder = tempfile.mkdtemp(prefix="qwchat-")  # Private, so that copies left by editors are private too.
    try:
        path = Path(folder) / "message.md"
        path.write_text(text + "\n" if text else "", encoding="utf-8", newline="\n", errors="replace")
        edit_file(path, unchanged, environment)
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise QwchatError(f"cannot read the edited text: {unchanged}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
