"""Configuration files: where they are, and what they say, checked key by key.

The user's own file is `config.toml` in the user's folder of configuration. A project file, `.qwchat.toml` or
`qwchat.toml`, stands in the working folder or, inside a repository, in one of the folders above up to its root. It
came with the project, so it may not choose models, paths or devices, and one of another user is not read.
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
MAX_CONFIG_BYTES = 1 << 16  # bytes; far more than every setting with a long system prompt

_ROOT = 0
_BY_NAME = {spec.name: spec for spec in SETTING_SPECS}


@dataclass(frozen=True)
class ConfigDocument:
    """A TOML file as read: `values` by key, and `text` to find lines in."""

    path: Path
    text: str
    values: Mapping[str, Any]

    def location(self, *keys: str) -> str:
        """`path:line` of a key, for messages."""
        line = toml.line_of(self.text, keys)
        return f"{self.path}:{line}" if line else str(self.path)


@dataclass(frozen=True)
class ProjectFile:
    """The project file that is in force, or none, with what there is to say about it."""

    path: Path | None = None
    notices: tuple[str, ...] = field(default=())


def user_config_folder(environment: Mapping[str, str] = os.environ) -> Path:
    """The folder of the user's configuration: QWCHAT_CONFIG, or the platform's. It need not exist."""
    if environment.get("QWCHAT_CONFIG"):
        return expand_path(environment["QWCHAT_CONFIG"])
    import platformdirs

    return platformdirs.user_config_path("qwchat", appauthor=False)


def user_config_file(environment: Mapping[str, str] = os.environ) -> Path:
    """The user's configuration file. It need not exist."""
    return user_config_folder(environment) / "config.toml"


def find_project_file(folder: Path | None = None) -> ProjectFile:
    """The nearest project file of `folder`: there, or further up inside the same repository.

    None is the working folder; where that is gone or closed to us there is no project.
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
                return ProjectFile(notices=(f"{path} belongs to another user and is not read",))
            return ProjectFile(path)
    return ProjectFile()


def _project_folders(folder: Path) -> Iterator[Path]:
    folders = [folder, *folder.parents]
    root = next((number for number, place in enumerate(folders) if (place / ".git").exists()), 0)
    yield from folders[: root + 1]


def _belongs_to_another_user(path: Path) -> bool:
    return path.stat().st_uid not in (os.getuid(), _ROOT)


def read(path: Path) -> ConfigDocument:
    """Read a TOML file. Raises UsageError with the line where it is not TOML, is too big or cannot be read."""
    with open_regular_file(path, UsageError) as file:
        data = file.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise UsageError(f"{path} is bigger than {binary_size(MAX_CONFIG_BYTES)}, more than a configuration can be")
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UsageError(f"{path}:{line}: not UTF-8 text (0x{data[error.start]:02x}): convert the file") from error
    return ConfigDocument(path, text, toml.parse(text, str(path)))


def checked_values(document: ConfigDocument, *, project: bool = False) -> dict[str, SettingValue]:
    """The values that `document` gives settings. Raises UsageError with file and line, and the name that was meant.

    `project`: refuse what a project file may not set.
    """
    return {key: checked_value(document, key, value, project=project) for key, value in document.values.items()}


def checked_value(document: ConfigDocument, key: str, value: object, *, project: bool = False) -> SettingValue:
    """The value that `document` gives the setting `key`; errors as for :func:`checked_values`."""
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
