"""The bearer token: from an environment variable or a private file, never from a command line."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from quant.safe_files import NotPrivateError, open_private
from qwchat.errors import UsageError

TOKEN_VARIABLE = "QWCHAT_SERVE_TOKEN"
_SHORTEST_TOKEN, _LONGEST_TOKEN = 16, 1024


def read_token(file: Path | None, environment: Mapping[str, str]) -> str | None:
    """Return the token in `file`, otherwise that of the environment, otherwise None.

    Raises:
        UsageError: the file cannot be read, other users can read it, or the token is unsuitable.
    """
    if file is None:
        token, where = environment.get(TOKEN_VARIABLE), TOKEN_VARIABLE
        if not token:
            return None
    else:
        token, where = _read(file), str(file)
    if not (_SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN and token.isascii() and token.isprintable()):
        raise UsageError(f"the token in {where} must have {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable characters")
    if " " in token:
        raise UsageError(f"the token in {where} must not contain spaces")
    return token


def _read(file: Path) -> str:
    try:
        with open_private(file) as opened:
            if os.fstat(opened.fileno()).st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                raise NotPrivateError
            data = opened.read(_LONGEST_TOKEN + 2)
    except NotPrivateError as error:
        raise UsageError(f"the token file {file} must be a file that only you can access: chmod 600 it") from error
    except OSError as error:
        raise UsageError(f"the token file {file} cannot be read: {error.strerror or error}") from error
    return data.decode("ascii", "replace").strip("\r\n")
