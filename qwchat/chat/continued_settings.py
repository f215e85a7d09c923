"""The settings with which an interrupted reply continues."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwchat.chat.reply_settings import REPLY_SPECS, SAMPLING_FIELDS, ReplySettings
from qwchat.errors import UsageError

# These affect the length and speed of a reply, not its text.
_NO_EFFECT_ON_TEXT = ("seed", "max-tokens", "speculate", "loop-guard")
CONTINUED_ORIGIN = "the reply that is continued"
OWN_SETTINGS_NOTE = "settings of its own"  # Note of a reply whose settings were for it alone.


def settings_to_continue(
    recorded: Mapping[str, Any] | None, before: ReplySettings, now: ReplySettings
) -> ReplySettings:
    """Return the settings with which to continue a reply, so that its text stays the same.

    Recorded values apply, except where the user has changed a setting since. Invalid recorded values are ignored,
    because a session file may contain anything.

    Args:
        recorded: the record of the reply's settings (`ReplySettings.record`).
        before: the settings that were in effect when the reply began.
        now: the settings in effect now.
    """
    reply_settings = now
    for spec in REPLY_SPECS:
        key = SAMPLING_FIELDS.get(spec.name, spec.parameter)
        if (
            recorded is None
            or spec.name in _NO_EFFECT_ON_TEXT
            or key not in recorded
            or before[spec.name] != now[spec.name]
        ):
            continue
        try:
            unset = spec.none_word and recorded[key] in (None, [])
            value = None if unset else spec.check(recorded[key], spec.name)
            reply_settings = reply_settings.with_value(spec.name, value, CONTINUED_ORIGIN)
        except UsageError:
            continue
    return reply_settings
