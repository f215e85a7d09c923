"""The engine: token ids in, tokens out. It knows neither text nor devices."""

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
        decoder: evaluates the tokens.
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
        forced: Callable[[], Sequence[int]] = tuple,
    ) -> Iterator[EngineEvent]:
        """Evaluate the prompt, except for the positions that are already cached, and generate a reply.

        The cache is consistent whenever the iterator yields, so the iterator may be dropped at any time.

        Args:
            cached: the conversation, a context of this engine's decoder.
            token_ids: the prompt.
            request: how to generate. `speculate` evaluates draft tokens together with the newest token (see
                `qwchat.generation.generation_loop`), as far as the decoder's `exact_rows` keep the text the same.
                `loop_guard` ends a reply that repeats itself (see `qwchat.generation.repetition`).
            usable_vocab: ids from here on are padding and are never chosen.
            stop_ids: tokens that end the reply; no TokenStep reports them.
            cancel: called between tokens and chunks, and during a long pass, which ends early when it returns True.
            continued: number of tokens at the end of `token_ids` that are the beginning of this reply. It continues as
                if it had not been cut: penalties and the draws of the seed count these tokens, `max_tokens` does not.
            mask: restricts the tokens that may be chosen, and ends the reply when it is complete. Its state is the one
                after the `continued` tokens.
            forced: called before each token is chosen; returns the tokens that come next instead of sampled ones. The
                mask must allow them.

        Yields:
            Prefilled after every chunk, TokenStep for every token but the stop token, and Finished at the end.

        Raises:
            PromptTooLongError: the prompt does not fit the context.
            NonFiniteLogitsError: the model produced NaN or infinite logits.
            ConstraintError: the mask allows no token.
            UsageError: the prompt is empty.
        """
        if cached.decoder is not self.decoder:
            raise ValueError("the context belongs to another decoder")
        ids, config = np.asarray(token_ids, np.int64), self.decoder.config
        if len(ids) == 0:
            raise UsageError("the prompt is empty: give at least one token")
        if len(ids) > self.decoder.context:
            raise PromptTooLongError(len(ids), self.decoder.context, context_limit(config))
        sampler = Sampler(request.settings, request.seed, min(usable_vocab, config.vocab_size), continued)
        draft_policy = self.draft_policy if request.speculate and self.decoder.exact_rows > 1 else None
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
            forced=forced,
        )
        try:
            yield from run.events()
        except NonFiniteLogitsError:
            cached.clear()
            raise
