"""The token budget of a thought: after so many tokens, the tokens that close the thought come next."""

from __future__ import annotations

from collections.abc import Sequence

from qwchat.reasoning import CLOSING_TAG
from qwchat.text.tokenizer import Tokenizer


class ThoughtBudget:
    """Budget of the thought of one reply.

    The closing tag is written as models of the family are trained to write it: on a line of its own, with a blank line
    after it. A thought may exceed the budget where it was generated with another one; then it is closed at once.

    Args:
        tokenizer: encodes the end of the thought.
        limit: tokens after the opening tag; 0 means no limit.
        constrained: a constraint begins right after the closing tag, so that no blank line follows.

    Attributes:
        forced: tokens that come next, in order; empty if the next token is free.
        closed: whether the budget closed the thought.
    """

    def __init__(self, tokenizer: Tokenizer, limit: int, *, constrained: bool) -> None:
        self._tokenizer, self._limit, self._constrained = tokenizer, limit, constrained
        self._tokens = 0
        self.forced: Sequence[int] = ()
        self.closed = False

    def add(self, token_id: int, *, was_thinking: bool, thinking: bool, starts_line: bool) -> None:
        """Count a token of the reply.

        Args:
            token_id: the token.
            was_thinking: whether the thought was open before it.
            thinking: whether the thought is open after it.
            starts_line: whether the text so far ends with a newline.
        """
        if self.forced and self.forced[0] == token_id:
            self.forced = self.forced[1:]
            self.closed |= was_thinking and not thinking
            return
        self.forced = ()
        self._tokens += was_thinking and thinking
        if thinking and 0 < self._limit <= self._tokens:
            self.forced = self._closing_ids("" if starts_line else "\n")

    def _closing_ids(self, before: str) -> list[int]:
        """Return the tokens that close the thought, after the text `before`."""
        after = "" if self._constrained else "\n\n"
        closing_id = self._tokenizer.special_ids.get(CLOSING_TAG)
        if closing_id is None:
            return self._tokenizer.encode(f"{before}{CLOSING_TAG}{after}")
        return self._tokenizer.encode_prompt([before, [closing_id], after])
