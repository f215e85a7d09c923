"""The settings of a reply, as they stand beside it in the tree of turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwchat.chat.reply_settings import REPLY_SPECS, SAMPLING, ReplySettings
from qwchat.errors import UsageError

# What bears on how far a reply goes and how fast, not on what it says.
_FREE = ("seed", "max-tokens", "speculate", "loop-guard")
ORIGIN = "the reply that is continued"
OWN = "settings of its own"  # the note of a reply that was made with other settings than those to come


def overlay(recorded: Mapping[str, Any] | None, then: ReplySettings, now: ReplySettings) -> ReplySettings:
    """The settings to go on with: as `recorded` where they bear on the text, save what was changed since.

    `then`: what a person had set when the reply was begun, `now`: what is set.  The record (ReplySettings.record)
    may be anything: what makes no sense is passed over.
    """
    controls = now
    for known in REPLY_SPECS:
        key = SAMPLING.get(known.name, known.parameter)
        if recorded is None or known.name in _FREE or key not in recorded or then[known.name] != now[known.name]:
            continue
        try:
            unset = known.none_word and recorded[key] in (None, [])
            value = None if unset else known.check(recorded[key], known.name)
            controls = controls.with_value(known.name, value, ORIGIN)
        except UsageError:
            continue
    return controls
