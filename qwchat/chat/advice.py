"""Error messages for the chat: arguments are spelt as `/set NAME VALUE`, remedies are chat commands."""

from __future__ import annotations

from quant.wording import Argument, SuggestedArgument, spell_out
from qwchat.chat.context_budget import ContextFullError, SummaryTooLongError
from qwchat.errors import PromptTooLongError
from qwchat.settings.personas import MissingVariablesError
from qwchat.settings.specs import spec_of_argument


def format_argument(argument: Argument) -> str:
    """Return an argument as the user of the chat writes it: `/set ctx 4096` to suggest it, `ctx 4096` to name it."""
    spec, value = spec_of_argument(argument.name), argument.value
    name = argument.name if spec is None else spec.name
    if value is ...:
        value = "VALUE" if spec is None else spec.value_type.metavar
    if not isinstance(argument, SuggestedArgument):
        return name if value is None else f"{name} {value}"
    if value is None:
        value = (spec and spec.none_word) or "default"
    return f"/set {name} {'on' if value is True else 'off' if value is False else value}"


def error_message(error: Exception) -> str:
    """Return the message of `error` with the remedy that the chat has for it."""
    if isinstance(error, MissingVariablesError):
        return f"{error}: use /as {error.persona} {' '.join(f'{name}=…' for name in error.missing)}"
    if isinstance(error, PromptTooLongError):
        return spell_out(error.with_advice(_how_to_shorten(error)), format_argument)
    return spell_out(error, format_argument)


def _how_to_shorten(error: PromptTooLongError) -> str:
    """Return the advice that makes the prompt shorter."""
    if isinstance(error, SummaryTooLongError):
        return "/drop removes them from the prompt"
    if isinstance(error, ContextFullError):
        return "/drop or /summarise frees tokens"
    return "shorten the message"
