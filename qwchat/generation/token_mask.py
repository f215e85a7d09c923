"""What the engine asks of a constraint.  It knows ids; what text they stand for is the constraint's affair."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class TokenMask(Protocol):
    """Which tokens may come next, as a reply grows (see :class:`qwchat.constraints.masks.GrammarMask`)."""

    def allowed(self) -> NDArray[np.uint8]:
        """Packed bits, (ceil(ids / 8),) u8: id n is bit n % 8, the lowest being 0, of byte n // 8.

        Stop tokens are allowed where the reply is complete.  Raises ConstraintError where it cannot be told.
        """

    def accept(self, token: int, remaining: int) -> int | None:
        """The reply grows by `token`, which is allowed, or by another that is returned; None: it ends before it.

        `remaining`: tokens that the reply may still have, this one included: where it would get too short to complete
        the reply, another token is taken, and `completing` is true from then on.
        """

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, one after the other, as far as there is no choice."""

    def count_allowed(self, tokens: Sequence[int]) -> int:
        """How many of `tokens` may come next, one after the other."""

    @property
    def completing(self) -> bool:
        """Whether the reply is being brought to an end for want of room."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end can follow."""
