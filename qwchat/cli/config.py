"""`qwchat config`: show, change and check the settings and their files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from qwchat import models_folder
from qwchat.chat.editor.external_editor import edit_file
from qwchat.chat.formatting import one_line
from qwchat.chat.reply_settings import ReplySettings
from qwchat.cli.config_options import (
    ConfigCheckOptions,
    ConfigFileOptions,
    ConfigGetOptions,
    ConfigSetOptions,
    ConfigShowOptions,
)
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.error_messages import error_message
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.json_output import json_line
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter
from qwchat.errors import QwchatError, UsageError
from qwchat.settings import config_files, editing, personas
from qwchat.settings.resolve import BUILT_IN, Settings, resolve
from qwchat.settings.specs import SETTING_SPECS, SettingSpec, closest_match, find_spec

_PREFIX = "QWCHAT_"
_MAX_SHOWN = 200  # characters of a value in a notice
# Variables that name folders, hold a secret or force a SIMD level; they are not settings.
_NON_SETTING_VARIABLES = (
    "QWCHAT_CACHE",
    "QWCHAT_CONFIG",
    "QWCHAT_MODELS",
    "QWCHAT_SERVE_TOKEN",
    "QWCHAT_SESSIONS",
    "QWCHAT_SIMD",
)

_COLUMNS = (
    Column("setting"),
    Column("value", wrap=10),
    Column("from", wrap=10, styles={BUILT_IN: "dim"}),
)


def show(options: ConfigShowOptions, dependencies: Dependencies) -> int:
    """Show every setting with its value and the origin of that value."""
    streams = Streams()
    settings = resolve()
    _show_notices(settings, streams)
    rows = [_row(spec, settings, _reply_settings(settings)) for spec in SETTING_SPECS]
    if options.json:
        streams.write(json_line({name: {"value": value, "from": origin} for name, value, _, origin in rows}) + "\n")
    else:
        shown = [(name, one_line(text), origin) for name, _, text, origin in rows]
        changed = {number: "bold" for number, row in enumerate(shown) if row[-1] != BUILT_IN}
        tables = TableWriter(streams)
        tables.write(tables.table(_COLUMNS, shown, changed))
    return ExitCode.OK


def get(options: ConfigGetOptions, dependencies: Dependencies) -> int:
    """Print the effective value of one setting."""
    settings = resolve()
    streams = Streams()
    _show_notices(settings, streams)
    _, _, text, _ = _row(find_spec(options.name), settings, _reply_settings(settings))
    streams.write(text + "\n")
    return ExitCode.OK


def path(options: ConfigFileOptions, dependencies: Dependencies) -> int:
    """Print the path of the settings file, which need not exist."""
    Streams().write(f"{_target_file(project=options.project)}\n")
    return ExitCode.OK


def change(options: ConfigSetOptions, dependencies: Dependencies) -> int:
    """Write a value to the settings file; "default" removes it from there."""
    streams = Streams()
    spec = find_spec(options.name)
    if options.project and not spec.project_may_set:
        raise UsageError(f"a project file may not set {spec.name}: leave --project out")
    file = _target_file(project=options.project)
    if options.value == "default":
        was_there = editing.remove(file, spec)
        notice = f"removed {spec.name} from {file}" if was_there else f"{spec.name} is not set in {file}"
        streams.screen.notice(notice)
    else:
        value = spec.parse(options.value, spec.name)
        if spec.name == "as" and value is not None:
            personas.read(str(value))
        editing.change(file, spec, value)
        streams.screen.notice(f"{spec.name} is {_shortened(spec.to_text(value))} in {file}")
    settings = resolve()
    if settings.origin(spec.name) not in (str(file), BUILT_IN):
        shown, origin = _shortened(spec.to_text(settings[spec.name])), settings.origin(spec.name)
        streams.screen.notice(f"{spec.name} is still {shown}, from {origin}")
    return ExitCode.OK


def _shortened(text: str) -> str:
    """Return `text`, cut off if it is too long for a notice."""
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}…"


def edit(options: ConfigFileOptions, dependencies: Dependencies) -> int:
    """Open the settings file in the user's editor, then check it. A new file lists every setting."""
    streams = Streams()
    file = _target_file(project=options.project)
    if not file.exists():
        editing.write(file, editing.template(project=options.project))
    edit_file(file, f"check {file}")
    config_files.checked_values(config_files.read(file), project=options.project)
    streams.screen.notice(f"{file} is valid")
    return ExitCode.OK


def check(options: ConfigCheckOptions, dependencies: Dependencies) -> int:
    """Report mistakes in files, personas and variables, one per line. Return exit code 2 if there are any."""
    streams = Streams()
    mistakes = list(_mistakes()) or list(_combined_mistakes())
    for mistake in mistakes:
        streams.screen.error(mistake)
    if mistakes:
        return ExitCode.USAGE
    for file in _existing_files():
        streams.write(f"ok {file}\n")
    return ExitCode.OK


def _show_notices(settings: Settings, streams: Streams) -> None:
    for notice in settings.notices:
        streams.screen.notice(notice)


def _reply_settings(settings: Settings) -> ReplySettings:
    """Return the reply settings, with the sampling defaults of the current model if it can be found."""
    from qwchat.request import SamplingParams
    from qwchat.text.generation_config import GenerationDefaults

    try:
        found = models_folder.locate(settings["model"])
        defaults = GenerationDefaults.from_folder(found.path).sampling
    except QwchatError:  # Reported when the model is used.
        defaults = SamplingParams()
    return ReplySettings.from_settings(settings, defaults)


def _row(spec: SettingSpec, settings: Settings, reply_settings: ReplySettings) -> tuple[str, object, str, str]:
    """Return name, value, value as text and origin of a setting."""
    if spec.scope == "reply":
        value, origin = reply_settings[spec.name], reply_settings.origin(spec.name)
    else:
        value, origin = settings[spec.name], settings.origin(spec.name)
    text = spec.to_text(None if value == () else value)
    return spec.name, list(value) if isinstance(value, tuple) else value, text, origin


def _target_file(*, project: bool) -> Path:
    if not project:
        return config_files.user_config_file()
    here = Path.cwd()
    return config_files.find_project_file(here).path or here / config_files.PROJECT_NAMES[0]


def _existing_files() -> Iterator[Path]:
    user, project = config_files.user_config_file(), config_files.find_project_file().path
    if user.is_file():
        yield user
    if project is not None:
        yield project
    yield from (personas.path_of(name) for name in personas.names())


def _mistakes() -> Iterator[str]:
    user, project = config_files.user_config_file(), config_files.find_project_file()
    yield from project.notices
    for file, by_project in ((user, False), (project.path, True)):
        if file is not None and file.is_file():
            yield from _file_mistakes(file, project=by_project)
    for name in personas.names():
        try:
            personas.read(name)
        except UsageError as error:
            yield error_message(error)
    yield from _variable_mistakes()


def _combined_mistakes() -> Iterator[str]:
    """Yield mistakes that appear only when files and variables are combined, such as a persona that does not exist."""
    try:
        resolve()
    except UsageError as error:
        yield error_message(error)


def _file_mistakes(file: Path, *, project: bool) -> Iterator[str]:
    try:
        document = config_files.read(file)
    except UsageError as error:
        yield error_message(error)
        return
    for key, value in document.values.items():
        try:
            config_files.checked_value(document, key, value, project=project)
        except UsageError as error:
            yield error_message(error)


def _variable_mistakes() -> Iterator[str]:
    specs_by_variable = {each.variable: each for each in SETTING_SPECS}
    endings = [name.removeprefix(_PREFIX) for name in (*specs_by_variable, *_NON_SETTING_VARIABLES)]
    for name in sorted(os.environ):
        if not name.startswith(_PREFIX) or name in _NON_SETTING_VARIABLES:
            continue
        if name not in specs_by_variable:
            close = closest_match(name.removeprefix(_PREFIX), endings)
            yield f"unknown variable {name}" + (f": did you mean {_PREFIX}{close}?" if close else "")
        elif os.environ[name]:
            try:
                specs_by_variable[name].parse(os.environ[name], name)
            except UsageError as error:
                yield error_message(error)
