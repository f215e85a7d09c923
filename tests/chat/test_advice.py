"""Messages about prompts that do not fit: the library names no flags; its callers add their own remedies."""

from __future__ import annotations

import pytest

from qwchat.chat import advice
from qwchat.chat.context_budget import ContextFullError, ContextShortage, SummaryTooLongError
from qwchat.cli import error_messages
from qwchat.errors import PromptTooLongError, UsageError
from qwchat.request import Prompt
from qwchat.settings.personas import MissingVariablesError

PROMPT = "the prompt has 5,000 tokens and the context holds 4,096, including one for the reply: "
TALK = "the conversation with this message has 5,000 tokens and the context holds 4,096, including one for the reply: "
OLD = "the oldest turns fill the context, so they cannot be summarised: "
MAXIMUM = " (this model supports at most 4,096 tokens)"


def full(longest: int) -> ContextFullError:
    return ContextFullError(ContextShortage(5000, 4096, longest, 2, Prompt(())))


@pytest.mark.parametrize(
    ("error", "library", "flags", "chat"),
    [
        (
            PromptTooLongError(5000, 4096, 32768),
            f"{PROMPT}shorten the prompt, or use a longer context (up to 32,768 tokens)",
            f"{PROMPT}shorten the prompt, or --ctx N allows a longer context (up to 32,768 tokens with this model)",
            f"{PROMPT}shorten the message, or /set ctx N allows a longer context (up to 32,768 tokens with this model)",
        ),
        (
            PromptTooLongError(5000, 4096, 4096),
            f"{PROMPT}shorten the prompt",
            f"{PROMPT}shorten the prompt{MAXIMUM}",
            f"{PROMPT}shorten the message{MAXIMUM}",
        ),
        # The model supports a longer context, but the prompt does not fit into that either.
        (
            PromptTooLongError(5000, 4096, 4500),
            f"{PROMPT}shorten the prompt",
            f"{PROMPT}shorten the prompt",
            f"{PROMPT}shorten the message",
        ),
        (
            full(32768),
            f"{TALK}drop old turns, or use a longer context (up to 32,768 tokens)",
            f"{TALK}use --overflow drop or summarise, or --ctx N allows a longer context "
            "(up to 32,768 tokens with this model)",
            f"{TALK}/drop or /summarise frees tokens, or /set ctx N allows a longer context "
            "(up to 32,768 tokens with this model)",
        ),
        (
            full(4096),
            f"{TALK}drop old turns",
            f"{TALK}use --overflow drop or summarise{MAXIMUM}",
            f"{TALK}/drop or /summarise frees tokens{MAXIMUM}",
        ),
        (
            SummaryTooLongError(5000, 4096, 4096),
            f"{OLD}drop them",
            f"{OLD}use --overflow drop to leave them out{MAXIMUM}",
            f"{OLD}/drop removes them from the prompt{MAXIMUM}",
        ),
        (
            MissingVariablesError("poet", ["place", "year"]),
            "persona poet needs place and year",
            "persona poet needs place and year: give --var place=… --var year=…",
            "persona poet needs place and year: use /as poet place=… year=…",
        ),
        (UsageError("there is no such file"), *["there is no such file"] * 3),
    ],
)
def test_each_place_names_its_own_remedies(error: Exception, library: str, flags: str, chat: str) -> None:
    assert str(error) == library
    assert error_messages.error_message(error) == flags
    assert advice.error_message(error) == chat
