"""The constraint on the next reply, and the error for a reply that does not meet it."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.events import Done
from qwchat.settings.specs import find_spec

if TYPE_CHECKING:
    from qwchat.constraints import Constraint

CONSTRAINT_SETTINGS = ("choices", "regex", "json-schema")  # At most one of them is set.


class SettingValues(Protocol):
    """Setting values by name, such as `ReplySettings`."""

    def __getitem__(self, name: str) -> Any: ...


def build_constraint(reply_settings: SettingValues) -> Constraint | None:
    """Build the constraint that the settings ask for. Return None if none of them is set."""
    name = next((name for name in CONSTRAINT_SETTINGS if reply_settings[name] is not None), None)
    return None if name is None else _constraint(name, reply_settings[name])


@lru_cache(maxsize=8)
def _constraint(name: str, value: Any) -> Constraint:
    from qwchat.constraints import Constraint

    if name == "choices":
        return Constraint.parse_choices(value)
    return Constraint.regex(value) if name == "regex" else Constraint.json_schema(value)


def unmet_constraint_message(
    done: Done, reply_settings: SettingValues, max_tokens: int | None
) -> ArgumentMessage | None:
    """Explain why a reply does not meet its constraint.

    Returns:
        The message; None if the reply meets the constraint, has none, or the user stopped it.
    """
    if done.meets_constraint is not False or done.finish_reason == "cancelled":
        return None
    name = next(name for name in CONSTRAINT_SETTINGS if reply_settings[name] is not None)
    reasons = {
        "length": ArgumentMessage("it was cut off at ", Argument("max_tokens", max_tokens), "; allow more tokens"),
        "context": ArgumentMessage(
            f"the context of {done.stats.context:,} tokens is full; ",
            SuggestedArgument("context", ...),
            " allows a larger one",
        ),
        "repetition": ArgumentMessage(
            "it repeated itself and was stopped; ", SuggestedArgument("loop_guard", 0), " disables the check"
        ),
        "stop": ArgumentMessage("a stop string ended it: ", SuggestedArgument("stop"))
        if reply_settings["stop"] or not done.stats.unknown
        else ArgumentMessage("the server does not keep to it"),
    }
    return ArgumentMessage(
        "the reply does not meet ", Argument(find_spec(name).argument), ": ", reasons[done.finish_reason]
    )
