"""Masks for reasoning models: a constraint that begins after the thought."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from qwchat.reasoning import ReasoningStart


class ReplyMask(Protocol):
    """Mask of the tokens of a reply (see `qwchat.generation.token_mask`) that can begin within the reply."""

    def allowed(self) -> NDArray[np.uint8]:
        """Return the allowed tokens as packed bits."""

    def accept(self, token: int, remaining: int | None = None) -> int | None:
        """Append a token to the reply, or another one where the reply could not be completed otherwise."""

    def accept_prefix(self, token: int) -> bool:
        """Append a token of the given prefix. Return False if the constraint does not allow it."""

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, up to the first choice."""

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` may follow, one after the other."""

    @property
    def completing(self) -> bool:
        """Whether the reply is being completed because few tokens remain."""

    @property
    def finished(self) -> bool:
        """Whether the reply is complete and nothing can follow."""


class AnswerMask:
    """Mask that leaves the thought free and applies another one to the answer; implements `ReplyMask`.

    The thought cannot end the reply, since the answer would be missing. The answer begins right after the closing tag.

    Args:
        mask: of the answer.
        opening_id: token id of the opening tag.
        closing_id: token id of the closing tag.
        stop_ids: token ids that end a reply.
        start: how the reply begins.
    """

    def __init__(
        self,
        mask: ReplyMask,
        opening_id: int,
        closing_id: int,
        stop_ids: Collection[int],
        start: ReasoningStart,
    ) -> None:
        self._mask, self._opening_id, self._closing_id = mask, opening_id, closing_id
        self._undecided, self._thinking = start == "optional", start == "open"
        self._in_thought = np.full_like(mask.allowed(), 0xFF)
        for token in stop_ids:
            self._in_thought[token // 8] &= np.uint8(0xFF ^ (1 << token % 8))

    def allowed(self) -> NDArray[np.uint8]:
        """Return the allowed tokens as packed bits."""
        if self._thinking:
            return self._in_thought
        bits = self._mask.allowed()
        if self._undecided:
            bits = bits.copy()
            bits[self._opening_id // 8] |= np.uint8(1 << self._opening_id % 8)
        return bits

    def accept(self, token: int, remaining: int | None = None) -> int | None:
        """Append a token to the reply."""
        return token if self._is_thought(token) else self._mask.accept(token, remaining)

    def accept_prefix(self, token: int) -> bool:
        """Append a token of the given prefix. Return False if the constraint does not allow it."""
        return self._is_thought(token) or self._mask.accept_prefix(token)

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, up to the first choice."""
        return [] if self._thinking or self._undecided else self._mask.forced_tokens()

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` may follow, one after the other, or fewer: drafts end with the thought."""
        if self._thinking:
            bits = np.unpackbits(self._in_thought, bitorder="little")
            last = next((at for at, token in enumerate(tokens) if token == self._closing_id or not bits[token]), None)
            return len(tokens) if last is None else last + int(tokens[last] == self._closing_id)
        if self._undecided and tokens and tokens[0] == self._opening_id:
            return 1
        return self._mask.count_allowed(tokens)

    @property
    def completing(self) -> bool:
        """Whether the answer is being completed because few tokens remain."""
        return self._mask.completing

    @property
    def finished(self) -> bool:
        """Whether the answer is complete and nothing can follow."""
        return not self._thinking and not self._undecided and self._mask.finished

    def _is_thought(self, token: int) -> bool:
        """Return whether the next token belongs to the thought or its tags."""
        if self._undecided:
            self._undecided, self._thinking = False, token == self._opening_id
            return self._thinking
        was_thinking = self._thinking
        self._thinking = was_thinking and token != self._closing_id
        return was_thinking
