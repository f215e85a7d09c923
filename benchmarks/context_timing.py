"""Time one prompt and the tokens after it on a context, without sampling."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from qwchat.generation.cached_context import CachedContext


def time_reply(context: CachedContext, prompt: int, reply: int, clock: Callable[[], float]) -> tuple[float, float]:
    """Return the seconds of `clock` that a prompt and the tokens after it take, from an empty cache.

    Args:
        context: conversation, whose cached tokens are dropped.
        prompt: tokens of the prompt, evaluated in chunks.
        reply: tokens after it, evaluated one by one.
        clock: `time.perf_counter`, or another clock.
    """
    ids, chunk = np.arange(prompt + reply, dtype=np.int64), context.decoder.chunk
    context.truncate(0)
    began = clock()
    for start in range(0, prompt, chunk):
        context.evaluate(ids[start : min(start + chunk, prompt)], chunk)
    read = clock()
    for place in range(prompt, prompt + reply):
        context.evaluate(ids[place : place + 1], 0)
    return read - began, clock() - read
