"""Protocol between the engine and a constraint. The engine sees ids only; the constraint knows their text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenMask(Protocol):
    """Tokens that may come next, as a reply grows (see `qwchat.constraints.masks.GrammarMask`)."""

    def allowed(self) -> NDArray[np.uint8]:
        """Return the allowed tokens as packed bits, (ceil(ids / 8),) u8: id n is bit n % 8 of byte n // 8.

        Bit 0 is the lowest. Stop tokens are allowed where the reply is complete. Raises ConstraintError if the
        constraint cannot be evaluated.
        """

    def accept(self, token: int, remaining: int) -> int | None:
        """Append a token to the reply.

        Args:
            token: an allowed token.
            remaining: tokens that the reply may still have, this one included. Where they would not suffice to complete
                the reply, the mask chooses another token, and `completing` is true from then on.

        Returns:
            The token that was appended, or None if the reply ends before it.
        """

    def forced_tokens(self) -> list[int]:
        """Return the tokens that must come next, as far as there is no choice."""

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """Return how many of `tokens` may come next, one after another."""

    @property
    def completing(self) -> bool:
        """Whether the mask is completing the reply because few tokens remain."""

    @property
    def finished(self) -> bool:
        """Whether the reply is complete, so that only its end can follow."""
