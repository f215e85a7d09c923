"""The engine: token ids in, tokens out. It knows no text, and no device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from qwchat.errors import NonFiniteLogitsError, PromptTooLongError, UsageError
from qwchat.events import EngineEvent
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.generation_loop import GenerationLoop
from qwchat.generation.sampling import Sampler
from qwchat.generation.speculation import DraftPolicy
from qwchat.generation.token_mask import TokenMask
from qwchat.model.context_limits import context_limit
from qwchat.model.decoder import Decoder
from qwchat.request import Request


class Engine:
    """Generates replies with one decoder, in any number of conversations, which may take turns token by token.

    Attributes:
        decoder: what evaluates tokens.
        draft_policy: what the engine has learnt about draft tokens, from all conversations.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.draft_policy = decoder, DraftPolicy()

    def generate(
        self,
        cached: CachedContext,
        token_ids: Sequence[int],
        request: Request,
        *,
        usable_vocab: int,
        stop_ids: frozenset[int] = frozenset(),
        cancel: Callable[[], bool] | None = None,
        continued: int = 0,
        mask: TokenMask | None = None,
    ) -> Iterator[EngineEvent]:
        """Evaluate the prompt, without the positions that the cache holds already, then generate.

        The cache is consistent whenever control is outside, so the iterator may be dropped at any time.

        Args:
            cached: the conversation, a context of this engine's decoder.
            token_ids: the prompt.
            request: how to generate. `speculate` evaluates draft tokens together with the newest token
                (`qwchat.generation.generation_loop`), on a decoder whose `exact_grouping` keeps the text the same.
                `loop_guard` counts as in `qwchat.generation.repetition`.
            usable_vocab: ids from here on are padding and never chosen.
            stop_ids: tokens that end the reply; no Step reports them.
            cancel: asked between tokens and chunks, and during a long pass, which ends early when it returns True.
            continued: how many of the last `token_ids` are a reply that was cut, which continues as if it had not
                been: penalties and the draws of the seed count them, `max_tokens` does not.
            mask: only what it allows is chosen, and the reply ends where nothing can follow. Its state is the one
                after the `continued` tokens.

        Yields:
            Prefilled after every chunk, Step for every token but the stop token, and Finished at the end.

        Raises:
            PromptTooLongError, NonFiniteLogitsError, ConstraintError.
            UsageError: the prompt is empty.
        """
        if cached.decoder is not self.decoder:
            raise ValueError("the context belongs to another decoder")
        ids, config = np.asarray(token_ids, np.int64), self.decoder.config
        if len(ids) == 0:
            raise UsageError("the prompt is empty: there is nothing to answer")
        if len(ids) > self.decoder.context:
            raise PromptTooLongError(len(ids), self.decoder.context, context_limit(config))
        sampler = Sampler(request.settings, request.seed, min(usable_vocab, config.vocab_size), continued)
        draft_policy = self.draft_policy if request.speculate and self.decoder.exact_grouping else None
        run = GenerationLoop(
            cached,
            ids,
            request,
            sampler,
            draft_policy,
            stop_ids=stop_ids,
            cancel=cancel,
            continued=continued,
            mask=mask,
        )
        try:
            yield from run.events()
        except NonFiniteLogitsError:
            cached.clear()
            raise
