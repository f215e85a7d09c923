"""Configuration files: where they are, and their contents, checked key by key.

The user's own file is `config.toml` in the user's configuration folder. A project file, `.qwchat.toml` or
`qwchat.toml`, is in the working folder or, inside a repository, in a parent folder up to the root of the repository. It
comes with the project, so it cannot set models, paths or devices, and it is ignored if it belongs to another user.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quant.safe_files import open_regular_file
from quant.units import binary_size
from quant.wording import Argument, ArgumentMessage
from qwchat.errors import UsageError
from qwchat.settings import toml
from qwchat.settings.specs import SETTING_SPECS, suggestion
from qwchat.settings.value_types import SettingValue
from qwchat.text_files import expand_path

PROJECT_NAMES = (".qwchat.toml", "qwchat.toml")
MAX_CONFIG_BYTES = 1 << 16  # ample for all settings with a long system prompt

_ROOT = 0
_BY_NAME = {spec.name: spec for spec in SETTING_SPECS}


@dataclass(frozen=True)
class ConfigDocument:
    """A parsed TOML file: `values` by key, and its `text` for line numbers."""

    path: Path
    text: str
    values: Mapping[str, Any]

    def location(self, *keys: str) -> str:
        """Return `path:line` of a key, for messages."""
        line = toml.line_of(self.text, keys)
        return f"{self.path}:{line}" if line else str(self.path)


@dataclass(frozen=True)
class ProjectFile:
    """The project file in effect, if any, and notices about it."""

    path: Path | None = None
    notices: tuple[str, ...] = field(default=())


def user_config_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's configuration folder: QWCHAT_CONFIG, or the platform's. It may not exist."""
    if environment.get("QWCHAT_CONFIG"):
        return expand_path(environment["QWCHAT_CONFIG"])
    import platformdirs

    return platformdirs.user_config_path("qwchat", appauthor=False)


def user_config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the user's configuration file. It may not exist."""
    return user_config_folder(environment) / "config.toml"


def find_project_file(folder: Path | None = None) -> ProjectFile:
    """Find the project file of `folder`: in it, or in a parent folder of the same repository.

    None is the working folder. If that is gone or inaccessible, there is no project file.
    """
    try:
        return _find_nearest(Path.cwd() if folder is None else folder)
    except OSError:
        return ProjectFile()


def _find_nearest(folder: Path) -> ProjectFile:
    for place in _project_folders(folder):
        for name in PROJECT_NAMES:
            path = place / name
            if not path.is_file():
                continue
            if _belongs_to_another_user(path):
                return ProjectFile(notices=(f"{path} is ignored because it belongs to another user",))
            return ProjectFile(path)
    return ProjectFile()


def _project_folders(folder: Path) -> Iterator[Path]:
    folders = [folder, *folder.parents]
    root = next((number for number, place in enumerate(folders) if (place / ".git").exists()), 0)
    yield from folders[: root + 1]


def _belongs_to_another_user(path: Path) -> bool:
    return path.stat().st_uid not in (os.getuid(), _ROOT)


def read(path: Path) -> ConfigDocument:
    """Read a TOML file. Raises UsageError, with the line, if it is invalid, too large or unreadable."""
    with open_regular_file(path, UsageError) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{path} is larger than {binary_size(MAX_CONFIG_BYTES)}, the limit for a configuration file")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text (0x{data[error.start]:02x}): convert the file") from error
    return ConfigDocument(path, text, toml.parse(text, str(path)))


def checked_values(document: ConfigDocument, *, project: bool = False) -> dict[str, SettingValue]:
    """Return all settings in `document`. Raises what `checked_value` raises."""
    return {key: checked_value(document, key, value, project=project) for key, value in document.values.items()}


def checked_value(document: ConfigDocument, key: str, value: object, *, project: bool = False) -> SettingValue:
    """Return the value of the setting `key` in `document`.

    Args:
        document: the file.
        key: name of the setting.
        value: its value in the file.
        project: refuse settings that a project file may not set.

    Raises:
        UsageError: the setting is unknown, refused or invalid; the message has file, line and the closest name.
    """
    spec = _BY_NAME.get(key)
    if spec is None:
        raise UsageError(f"{document.location(key)}: there is no setting {key!r}: {suggestion(key)}")
    if project and not spec.project_may_set:
        raise UsageError(
            ArgumentMessage(
                f"{document.location(key)}: a project file may not set {key}: give ",
                Argument(spec.argument),
                f", set {spec.variable}, or use your own file (qwchat config path)",
            )
        )
    try:
        return spec.check(value, key)
    except UsageError as error:
        raise UsageError(ArgumentMessage(f"{document.location(key)}: ", error)) from error
