"""Change one key of a configuration file; comments and all other lines stay as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwchat.errors import UsageError
from qwchat.settings import config_files
from qwchat.settings.specs import SETTING_SPECS, SettingSpec
from qwchat.settings.value_types import SettingValue
from qwchat.text_files import replace_text

_HEADER = """\
# Settings of qwchat. Remove the # of a line to use it. `qwchat config check` finds mistakes, and `qwchat config show`
# shows the value in effect and its origin. Flags and QWCHAT_... variables take precedence over this file.
"""


def change(path: Path, spec: SettingSpec, value: SettingValue) -> None:
    """Write a setting to the file at `path`, which is created if necessary. Raises UsageError."""
    document = _open_document(path)
    document[spec.name] = spec.to_toml(value)
    write(path, _to_text(document))


def remove(path: Path, spec: SettingSpec) -> bool:
    """Remove a setting from the file at `path`. Return True if it was there. Raises UsageError."""
    document = _open_document(path)
    if spec.name not in document:
        return False
    del document[spec.name]
    write(path, _to_text(document))
    return True


def template(*, project: bool) -> str:
    """Return a file with every setting commented out; for a `project`, those that it may set."""
    lines = [_HEADER]
    for spec in SETTING_SPECS:
        if project and not spec.project_may_set:
            continue
        example = spec.to_toml(spec.default) if spec.default is not None or spec.none_word else None
        shown = _to_text({spec.name: example}).strip() if example is not None else f"{spec.name} = "
        lines.append(f"# {spec.help}: {spec.accepts}.\n#{shown}\n")
    return "\n".join(lines)


def write(path: Path, text: str) -> None:
    """Replace the file at `path` atomically, through links. A new file is readable for its owner only.

    Raises UsageError if the file cannot be written.
    """
    target = path.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
        replace_text(target, text, mode)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _open_document(path: Path) -> Any:
    import tomlkit

    if not path.exists():
        return tomlkit.document()
    return tomlkit.parse(config_files.read(path).text)  # read() has checked the syntax.


def _to_text(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
