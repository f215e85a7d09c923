"""The KV caches of the latest conversations: a prompt takes the one with which it shares the longest beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwchat.errors import NotEnoughMemoryError

if TYPE_CHECKING:
    from qwchat.api import Model
    from qwchat.generation.cached_context import CachedContext

_REPLY_HEADER_TOKENS = 4
"""Tokens at the end of a prompt that begin the reply, such as `<think>`, and that the next prompt may leave out. The
end of a message and the header of the reply have more."""
_FEW_TOKENS = 16
"""So many tokens are soon evaluated again."""


@dataclass(eq=False)
class _Kept:
    """A KV cache, and the number of tokens of the latest prompt in it."""

    context: CachedContext
    prompt_tokens: int = 0

    def is_continued_by(self, common: int) -> bool:
        """Return whether a prompt that shares `common` tokens should take this cache.

        It should if it contains the latest prompt: the reply may differ, since it is generated again or the template
        leaves out its thought. It should as well if little is lost.
        """
        is_next_turn = common >= self.prompt_tokens - _REPLY_HEADER_TOKENS
        return is_next_turn or self.context.length - common <= _FEW_TOKENS


class KeptContexts:
    """KV caches of the latest conversations, all of one model. Used in the model's thread alone.

    A prompt that continues a conversation takes its cache. One that only begins like it, such as another conversation
    with the same system prompt, gets a copy of the common positions in the cache that was used least recently.

    Args:
        model: the model. The first cache is its own.
        most: number of caches, at least 1.
    """

    def __init__(self, model: Model, most: int) -> None:
        self._model, self._most = model, most
        self._kept = [_Kept(model.cached_context)]  # Least recently used first.

    @property
    def count(self) -> int:
        """Number of caches."""
        return len(self._kept)

    @property
    def tokens(self) -> int:
        """Number of positions that are cached, in all caches together."""
        return sum(kept.context.length for kept in self._kept)

    @property
    def used_bytes(self) -> int:
        """Bytes of these positions. A cache keeps the memory of the longest conversation that it has held."""
        return sum(kept.context.snapshot_bytes() for kept in self._kept)

    def choose(self, token_ids: Sequence[int]) -> CachedContext:
        """Return the cache for a prompt, as the one that was used most recently. It may hold other tokens as well."""
        if self._kept[0].context.decoder is not self._model.engine.decoder:  # The model has moved to another device.
            self._kept = [_Kept(self._model.cached_context)]
        best = max(self._kept, key=lambda kept: kept.context.count_cached(token_ids))
        common = best.context.count_cached(token_ids)
        chosen = best if best.is_continued_by(common) else self._free()
        if chosen is not best:
            chosen.context.truncate(0)
            if common:
                chosen.context.copy_from(best.context, common)
        self._kept.remove(chosen)
        self._kept.append(chosen)
        chosen.prompt_tokens = len(token_ids)
        return chosen.context

    def _free(self) -> _Kept:
        """Return an empty cache: one without tokens, a new one, or the one that was used least recently."""
        empty = next((kept for kept in self._kept if not kept.context.length), None)
        if empty is None and len(self._kept) < self._most:
            try:
                self._kept.insert(0, _Kept(self._model.make_context()))
            except NotEnoughMemoryError:
                self._most = len(self._kept)
        return self._kept[0] if empty is None else empty
