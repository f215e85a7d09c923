"""The settings of a reply, as they stand beside it in the tree of turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwchat.chat.reply_settings import REPLY_SPECS, SAMPLING_FIELDS, ReplySettings
from qwchat.errors import UsageError

# What bears on how far a reply goes and how fast, not on what it says.
_NO_EFFECT_ON_TEXT = ("seed", "max-tokens", "speculate", "loop-guard")
CONTINUED_ORIGIN = "the reply that is continued"
OWN_SETTINGS_NOTE = "settings of its own"  # the note of a reply that was made with other settings than those to come


def settings_to_continue(
    recorded: Mapping[str, Any] | None, before: ReplySettings, now: ReplySettings
) -> ReplySettings:
    """The settings to go on with: as `recorded` where they bear on the text, save what was changed since.

    `then`: what a person had set when the reply was begun, `now`: what is set.  The record (ReplySettings.record)
    may be anything: what makes no sense is passed over.
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
