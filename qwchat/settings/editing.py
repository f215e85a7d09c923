"""Changing a configuration file: one key at a time, with every comment and every other line as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qwchat.errors import UsageError
from qwchat.settings import config_files
from qwchat.settings.specs import SETTING_SPECS, SettingSpec
from qwchat.settings.value_types import SettingValue
from qwchat.text_files import replace_text

_HEADER = """\
# Settings of qwchat. A line counts without its #; `qwchat config check` looks for mistakes, `qwchat config show` shows
# which value holds and why. Flags and QWCHAT_... variables are stronger than this file.
"""


def change(path: Path, spec: SettingSpec, value: SettingValue) -> None:
    """Write `value` for a setting into the file at `path`, which is made if it is not there.

    Raises UsageError where the file is no TOML or cannot be written.
    """
    document = _open_document(path)
    document[spec.name] = spec.to_toml(value)
    write(path, _to_text(document))


def remove(path: Path, spec: SettingSpec) -> bool:
    """Take a setting out of the file at `path`; whether it was there. Raises UsageError as `change` does."""
    document = _open_document(path)
    if spec.name not in document:
        return False
    del document[spec.name]
    write(path, _to_text(document))
    return True


def template(*, project: bool) -> str:
    """A file that says what could stand in it, every line a comment; for a `project` what such a file may set."""
    lines = [_HEADER]
    for spec in SETTING_SPECS:
        if project and not spec.project_may_set:
            continue
        example = spec.to_toml(spec.default) if spec.default is not None or spec.none_word else None
        shown = _to_text({spec.name: example}).strip() if example is not None else f"{spec.name} = "
        lines.append(f"# {spec.help}: {spec.accepts}.\n#{shown}\n")
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


def _open_document(path: Path) -> Any:
    import tomlkit

    if not path.exists():
        return tomlkit.document()
    return tomlkit.parse(config_files.read(path).text)  # What read() let through is TOML.


def _to_text(document: Any) -> str:
    import tomlkit

    return tomlkit.dumps(document)
