"""The key for an endpoint: from the environment, or from a file that only its owner can read."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from quant.safe_files import NotPrivateError, read_secret
from quant.wording import Argument, ArgumentMessage
from qwchat.characters import sanitise_name
from qwchat.errors import UsageError
from qwchat.settings import config_files
from qwchat.settings.endpoint import KEY_VARIABLE
from qwchat.text_files import expand_path

KEY_FILE_NAME = "endpoint-key"
_MAX_KEY_BYTES = 8192


class EndpointKey:
    """The key for one server. It is shown nowhere.

    Args:
        value: the key.
        source: where it comes from, for messages.
    """

    def __init__(self, value: str, source: str) -> None:
        self._value, self.source = value, source

    def __repr__(self) -> str:
        return f"EndpointKey(from {self.source})"

    @property
    def header(self) -> str:
        """The value of the Authorization header."""
        return f"Bearer {self._value}"

    def hide_in(self, text: str) -> str:
        """Return `text`, which a server sent, without the key."""
        return text.replace(self._value, "…")


def default_key_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the file of the key that is read if no other is set. It may not exist."""
    return config_files.user_config_folder(environment) / KEY_FILE_NAME


def read_key(key_file: str | None, environment: Mapping[str, str] = os.environ) -> EndpointKey | None:
    """Return the key from the environment or from a file, None without one.

    Args:
        key_file: path of the file; None for `default_key_file`, which may be missing.
        environment: environment variables.

    Raises:
        UsageError: the file cannot be read, others can read it, or its content cannot be a key.
    """
    if environment.get(KEY_VARIABLE):
        return _checked(environment[KEY_VARIABLE], KEY_VARIABLE)
    path = default_key_file(environment) if key_file is None else expand_path(key_file)
    shown = sanitise_name(str(path))
    try:
        data = read_secret(path, _MAX_KEY_BYTES)
    except NotPrivateError:
        raise UsageError(f"{shown} must be a file that only you can read: run chmod 600 on it") from None
    except (OSError, ValueError) as error:
        if key_file is None:
            return None
        reason = getattr(error, "strerror", None) or "impossible name"
        remedy = ArgumentMessage("check ", Argument("endpoint_key_file"))
        raise UsageError(ArgumentMessage(f"{shown} cannot be read ({reason}): ", remedy)) from None
    return _checked(data.decode("utf-8", "replace"), shown)


def _checked(text: str, source: str) -> EndpointKey:
    value = text.strip()
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise UsageError(f"{source} does not contain a key: one line of ASCII characters without spaces is needed")
    return EndpointKey(value, source)
