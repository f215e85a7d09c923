"""Estimates of token counts, for a model whose tokenizer is on a server."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

_ASCII_PER_TOKEN = 4.0
_OTHERS_PER_TOKEN = 1.5
_MESSAGE_TOKENS = 5  # role and control tokens
_PROMPT_TOKENS = 3
_LOWEST_FACTOR, _HIGHEST_FACTOR = 0.4, 3.0
_LEAST_TOKENS = 32  # A shorter prompt says little about the factor.
_MAX_KNOWN = 64

Turns = tuple[tuple[str, str], ...]
"""Role and text of each message."""


def turns_of(messages: Iterable[Mapping[str, Any]]) -> Turns:
    """Return what identifies a conversation: role and text of each message."""
    return tuple((str(message["role"]), str(message["content"])) for message in messages)


class TokenEstimate:
    """Estimator of token counts. The counts that the server reports correct it.

    The length of a prompt that was sent before is known exactly, and so is the beginning of a longer one.
    """

    def __init__(self) -> None:
        self._factor = 1.0
        self._known: OrderedDict[Turns, int] = OrderedDict()

    def text(self, text: str) -> int:
        """Return the estimated number of tokens of `text`."""
        return round(self._factor * _plain_estimate(text))

    def prompt(self, turns: Turns) -> tuple[int, bool]:
        """Return the tokens of the prompt of a conversation, and whether the number is exact."""
        for length in range(len(turns), 0, -1):
            known = self._known.get(turns[:length])
            if known is not None:
                return known + sum(self.text(text) + _MESSAGE_TOKENS for _, text in turns[length:]), length == len(
                    turns
                )
        return _PROMPT_TOKENS + sum(self.text(text) + _MESSAGE_TOKENS for _, text in turns), False

    def with_control_tokens(self, tokens: int, turns: Turns) -> int:
        """Return the length of a prompt whose texts have `tokens` tokens."""
        return tokens + _PROMPT_TOKENS + _MESSAGE_TOKENS * len(turns)

    def learn(self, turns: Turns, tokens: int) -> None:
        """Remember the reported length of a prompt."""
        self._known[turns] = tokens
        self._known.move_to_end(turns)
        if len(self._known) > _MAX_KNOWN:
            self._known.popitem(last=False)
        plain = sum(_plain_estimate(text) for _, text in turns)
        content = tokens - _PROMPT_TOKENS - _MESSAGE_TOKENS * len(turns)
        if plain >= _LEAST_TOKENS and content > 0:
            self._factor = min(max(content / plain, _LOWEST_FACTOR), _HIGHEST_FACTOR)


def _plain_estimate(text: str) -> float:
    others = len(text) - len(text.encode("ascii", "ignore"))
    return (len(text) - others) / _ASCII_PER_TOKEN + others / _OTHERS_PER_TOKEN
