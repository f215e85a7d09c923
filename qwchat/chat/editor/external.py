"""Writing a message in another editor."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from qwchat.chat.editor.modes import terminal_lent
from qwchat.errors import UsageError

_USUAL = ("editor", "nano", "vi", "emacs", "notepad")


def command(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The editor of $VISUAL or $EDITOR with its arguments, or one that is usually there. Raises UsageError."""
    for name in ("VISUAL", "EDITOR"):
        wanted = environment.get(name, "").strip()
        if wanted:
            try:
                return shlex.split(wanted, posix=sys.platform != "win32")
            except ValueError as error:
                raise UsageError(f"${name} cannot be read ({error}): set it to a command") from error
    for usual in _USUAL:
        found = shutil.which(usual)
        if found is not None:
            return [found]
    raise UsageError("there is no editor: set $EDITOR to one")


def edited(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """``text`` after the person has changed it in the editor, which has the terminal meanwhile.

    Raises UsageError where the editor cannot be run, fails or leaves no text.
    """
    program = command(environment)
    folder = tempfile.mkdtemp(prefix="qwchat-")  # Readable for its owner only, as are copies that editors leave there.
    try:
        path = Path(folder) / "message.md"
        path.write_text(text + "\n" if text else "", encoding="utf-8", newline="\n", errors="replace")
        try:
            with terminal_lent():
                status = subprocess.run([*program, str(path)], check=False).returncode
        except OSError as error:
            raise UsageError(f"cannot run {program[0]}: {error.strerror}: set $EDITOR to an editor") from error
        if status:
            raise UsageError(f"{program[0]} failed with exit code {status}: the message is as it was")
        return path.read_text(encoding="utf-8").removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read back what {program[0]} wrote: the message is as it was") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
