"""Run qwchat for the comparison through its public interface, so that every timed step includes sampling."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import qwchat
from qwchat.events import Finished, Stats
from qwchat.request import Request, SamplingParams


class QwchatContext:
    """Converted model with a KV cache of `size` positions. Raises UsageError for an unknown kind of cache."""

    def __init__(self, path: Path, kv: str, size: int, threads: int) -> None:
        self.model = qwchat.load(path, threads=threads, context=size, kv=kv, verify=False)
        self.vocab_size = self.model.tokenizer.vocab_size
        self._depth: list[int] = []
        self._runs = 0

    def close(self) -> None:
        """Close the model and its threads."""
        self.model.close()

    def prefill(self, tokens: Sequence[int]) -> float:
        """Return the seconds from the empty cache to the first token generated behind `tokens`."""
        self.model.cached_context.truncate(0)
        seconds = self._generate(tokens, 1).time_to_first_token
        assert seconds is not None, "one token was asked for"
        return seconds

    def decode(self, depth: int, count: int) -> float:
        """Return the seconds of `count` steps behind `depth` cached positions and one warm-up step."""
        self._runs += 1
        first = self._runs % self.vocab_size
        stats = self._generate([*self._depth[:depth], first], count + 1)
        return stats.decode_seconds

    def fill(self, tokens: Sequence[int]) -> bool:
        """Fill the cache with `tokens` by evaluating them. Return False: no positions were copied."""
        self._depth = list(tokens)
        if tokens:
            self.model.cached_context.truncate(0)
            self._generate(tokens, 1)
        return False

    def _generate(self, tokens: Sequence[int], count: int) -> Stats:
        """Evaluate `tokens` and generate `count` tokens greedily."""
        request = Request(SamplingParams(), seed=0, max_tokens=count, speculate=False)
        events = self.model.engine.generate(self.model.cached_context, tokens, request, usable_vocab=self.vocab_size)
        return [event for event in events if isinstance(event, Finished)][-1].stats
