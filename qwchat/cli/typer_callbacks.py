"""Functions with the signatures that Typer reads, made from the dataclasses of options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from qwchat.cli import completion
from qwchat.cli.options import Flags
from qwchat.settings.constraint_types import JsonSchema
from qwchat.settings.specs import SETTING_SPECS, SettingSpec
from qwchat.settings.value_types import Boolean, Number, TextList

Options = TypeVar("Options")
# Completions that are looked up when a shell asks, by name of the setting.
_DYNAMIC_COMPLETIONS: dict[str, Callable[[str], list[tuple[str, str]]]] = {
    "model": completion.models,
    "as": completion.personas,
}


def typer_callback(
    options: type[Options],
    run: Callable[[typer.Context, Options], int],
    extra: dict[str, tuple[Any, Any]] | None = None,
) -> Callable[..., int]:
    """Return a function with the signature that Typer reads: a context, and one parameter per field of `options`.

    Args:
        options: dataclass to fill.
        run: function to call with it; its result is the exit code.
        extra: further parameters, name to (annotation, default), with callbacks of their own.
    """
    hints = get_type_hints(options, include_extras=True)
    field_names: list[str] = []
    flags_field = ""  # The field for the flags of settings.
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for each in fields(options):  # type: ignore[arg-type]  # Always a dataclass.
        if hints[each.name] is Flags:
            flags_field = each.name
            parameters += [_parameter(spec) for spec in SETTING_SPECS]
            continue
        default = inspect.Parameter.empty if each.default is MISSING else each.default
        field_names.append(each.name)
        parameters.append(_keyword(each.name, default, hints[each.name]))
    parameters += [_keyword(name, default, annotation) for name, (annotation, default) in (extra or {}).items()]

    def callback(context: typer.Context, **values: Any) -> int:
        arguments = {name: values[name] for name in field_names}
        if flags_field:
            arguments[flags_field] = Flags(
                {spec.name: raw for spec in SETTING_SPECS if (raw := values[spec.parameter]) is not None}
            )
        return run(context, options(**arguments))

    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return callback


def _keyword(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _parameter(spec: SettingSpec) -> inspect.Parameter:
    """Return the parameter of a setting: a string that the setting parses, or a boolean flag."""
    limits = f" [{spec.value_type.range_text.removeprefix('from ')}]" if isinstance(spec.value_type, Number) else ""
    declared = [spec.flag, *([spec.short_flag] if spec.short_flag else [])]
    annotation: Any = str | None
    metavar: str | None = spec.value_type.metavar
    if isinstance(spec.value_type, Boolean):
        annotation, metavar, declared[0] = bool | None, None, f"{spec.flag}/{spec.flag_for(False)}"
    elif isinstance(spec.value_type, TextList):
        annotation = list[str] | None

    def complete_words(incomplete: str) -> list[tuple[str, str]]:
        # Without completions, a shell offers file names, which is right for a schema.
        words = () if isinstance(spec.value_type, JsonSchema) else spec.completions
        return [(word, "") for word in words if word.startswith(incomplete)]

    autocompletion = _DYNAMIC_COMPLETIONS.get(spec.name, complete_words)
    option = typer.Option(*declared, metavar=metavar, help=f"{spec.help}{limits}", autocompletion=autocompletion)
    return _keyword(spec.parameter, None, Annotated[annotation, option])
