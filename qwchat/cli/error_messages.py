"""Error messages for the command line: arguments become flags."""

from __future__ import annotations

from quant.wording import Argument, SuggestedArgument, spell_out
from qwchat.errors import PromptTooLongError
from qwchat.settings.personas import MissingVariablesError
from qwchat.settings.specs import spec_of_argument

# Flags of arguments that are not settings and have another name.
_FLAGS = {"variables": "--var", "use_files": "--no-config"}


def as_flag(argument: Argument) -> str:
    """Return an argument as a flag with its value: `--ctx 4096`, `--force`, `--kv`."""
    spec, value = spec_of_argument(argument.name), argument.value
    flag_name = _FLAGS.get(argument.name, f"--{argument.name.replace('_', '-')}")
    flag = flag_name if spec is None else spec.flag_for(value)
    if isinstance(argument, SuggestedArgument) and value is None:
        return f"leave {flag} out"
    if value is ...:
        return f"{flag} {'VALUE' if spec is None else spec.value_type.metavar}"
    return flag if value is None or isinstance(value, bool) else f"{flag} {value}"


def error_message(error: Exception) -> str:
    """Return the message of `error` with advice for the command line."""
    if isinstance(error, MissingVariablesError):
        return f"{error}: give {' '.join(as_flag(Argument('variables', f'{name}=…')) for name in error.missing)}"
    if isinstance(error, PromptTooLongError):
        return spell_out(error.with_advice(_shortening_advice(error)), as_flag)
    return spell_out(error, as_flag)


def _shortening_advice(error: PromptTooLongError) -> str:
    """Return the advice on shortening the prompt."""
    from qwchat.chat.context_budget import ContextFullError, SummaryTooLongError

    if isinstance(error, SummaryTooLongError):
        return "use --overflow drop to leave them out"
    if isinstance(error, ContextFullError):
        return "use --overflow drop or summarise"
    return "shorten the prompt"
