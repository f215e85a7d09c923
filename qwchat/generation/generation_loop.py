"""One generation: reads the prompt, then chooses token after token, several in one pass where a guess can be had.

Speculation: what followed the newest tokens where they stood before (:mod:`qwchat.generation.prompt_lookup`) is read
together with the newest token, in one pass.  Then tokens are drawn one after the other, as without drafts: the n-th
from the logits behind the n - 1 before it, with the n-th number of the seed's stream, penalties counting all before it.
 As long as the token drawn is the one that was drafted, the logits behind it have been computed already; the first that
 differs
ends the pass, and what was read behind it is forgotten.

So the text is, token by token, the text without speculation: logits do not depend on how tokens are grouped into passes
(bit for bit, which the decoder promises: `Decoder.exact_grouping`), and neither do the draws.  It is also rejection
sampling in the sense of Leviathan et al. 2023 (https://arxiv.org/abs/2211.17192, section 2.3): their drafts come from a
distribution q and are accepted with probability min(1, p(x) / q(x)), else a token is drawn from what p has more than q.
Here q is certain of x, so that is: accept with probability p(x), else draw from p without x.  Drawing once from p and
comparing with x does exactly this, P(draw = x) = p(x) and P(draw = y | draw != x) = p(y) / (1 - p(x)), and keeps the
seed's text besides.

A constraint is asked before each draw which tokens are allowed, and told of the one that was drawn, also within a
pass: a draft that it rules out is never drawn.  What it forces is drafted, since it is certain to be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator

import numpy as np
from numpy.typing import NDArray

from qwchat.events import EngineEvent, Finished, FinishReason, Prefilled, Stats, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.repetition import RepetitionGuard
from qwchat.generation.sampling import Sampler, log_probabilities
from qwchat.generation.speculation import MAX_PASS_TOKENS, Drafter, DraftPolicy
from qwchat.generation.token_mask import TokenMask
from qwchat.model.decoder import PassCancelled
from qwchat.request import Request


class GenerationLoop:
    """One generation: its clock, its tokens, and why it ends.

    `ids` (tokens,) i64: the prompt, at least one token and no more than fit; the last `continued` of them are the
    reply so far, and the draw of `sampler` is the one after them.  `draft_policy`: what is known about
    drafting; None never drafts.  See :meth:`Engine.generate` for the rest.
    """

    def __init__(
        self,
        cached: CachedContext,
        ids: NDArray[np.int64],
        request: Request,
        sampler: Sampler,
        draft_policy: DraftPolicy | None,
        *,
        stop_ids: frozenset[int] = frozenset(),
        cancel: Callable[[], bool] | None = None,
        continued: int = 0,
        mask: TokenMask | None = None,
    ) -> None:
        self._start = time.perf_counter()
        self._cached, self._ids, self._sampler = cached, ids, sampler
        self._context = cached.decoder.context
        self._stop_ids, self._cancelled = stop_ids, cancel or (lambda: False)
        self._max_tokens, self._logprobs = request.max_tokens, request.logprobs
        self._drafter = None if draft_policy is None else Drafter(ids, draft_policy, stop_ids)
        # The last token is always read again: its logits are needed.
        self._reused = min(cached.count_cached(ids), len(ids) - 1)
        cached.truncate(self._reused)
        self._prompt, self._continued = ids[: len(ids) - continued], continued
        self._generated: list[int] = ids[len(ids) - continued :].tolist()
        self._repetition_guard = RepetitionGuard(request.loop_guard) if request.loop_guard else None
        self._is_repeating = False
        self._mask = mask
        self._drafted = self._accepted = 0
        self._evaluated = self._reused  # of `ids`
        self._prefill_seconds = self._first_token_seconds = self._last_token_seconds = 0.0

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def events(self) -> Iterator[EngineEvent]:
        """The events of :meth:`Engine.generate`."""
        try:
            reason = yield from self._generate()
        except PassCancelled:
            reason = "cancelled"
        yield Finished(reason, self._stats())

    def _generate(self) -> Generator[EngineEvent, None, FinishReason]:
        logits = None
        chunk = self._cached.decoder.chunk
        for start in range(self._reused, len(self._ids), chunk):
            if self._cancelled():
                break
            piece = self._ids[start : start + chunk]
            last = start + len(piece) == len(self._ids)
            logits = self._cached.evaluate(piece, len(piece) - 1 if last else len(piece), cancelled=self._cancelled)
            self._prefill_seconds, self._evaluated = self._elapsed(), start + len(piece)
            yield Prefilled(self._evaluated, len(self._ids), self._reused)
        if logits is None or not len(logits):
            return "cancelled"
        return (yield from self._decode(logits))

    def _decode(self, logits: NDArray[np.float32]) -> Generator[EngineEvent, None, FinishReason]:
        """`logits` (1, vocab) f32: those behind the prompt."""
        if self._mask is not None and self._mask.finished:
            return "stop"
        while True:
            for row in logits:
                if end := self._reason_to_stop():
                    return end
                allowed = None if self._mask is None else self._mask.allowed()
                token = self._sampler.sample(row, self._prompt, self._generated, allowed)
                if self._mask is not None and token not in self._stop_ids:
                    accepted = self._mask.accept(token, self._remaining_tokens())
                    if accepted is None:
                        return self._nearest_limit()
                    token = accepted
                self._last_token_seconds = self._elapsed()
                self._first_token_seconds = self._first_token_seconds or self._last_token_seconds
                if self._drafter is not None:
                    self._drafter.append(token)
                if token in self._stop_ids:
                    return "stop"
                self._generated.append(token)
                self._is_repeating = self._repetition_guard is not None and self._repetition_guard.append(token)
                yield self._step(token, row)
                if self._mask is not None and self._mask.finished:
                    return self._nearest_limit() if self._mask.completing else "stop"
                if end := self._reason_to_stop():
                    return end
                if not self._cached.accept(token):
                    break
                self._accepted += 1
            if self._cached.length == self._context:
                return "context"
            logits = self._evaluate(token)

    def _step(self, token: int, row: NDArray[np.float32]) -> TokenStep:
        if not self._logprobs:
            return TokenStep(token)
        logprob, likeliest = log_probabilities(row[: self._sampler.usable_vocab], token, self._logprobs)
        return TokenStep(token, logprob, tuple(likeliest))

    def _evaluate(self, token: int) -> NDArray[np.float32]:
        """Reads `token` and what may follow it; logits (1 + drafts, vocab) f32."""
        if self._drafter is None:
            return self._cached.evaluate(np.array([token], np.int64), 0, cancelled=self._cancelled)
        limit = self._context - self._cached.length - 1
        if self._max_tokens is not None:
            limit = min(limit, self._max_tokens - self._new_tokens - 1)
        draft = self._drafter.draft(limit)
        if self._mask is not None:
            draft = self._drafts_to_evaluate(self._mask, draft, limit)
        self._drafted += len(draft)
        start = time.perf_counter()
        logits = self._cached.evaluate(np.array([token, *draft], np.int64), 0, 1, self._cancelled)
        self._drafter.policy.record_pass(1 + len(draft), time.perf_counter() - start)
        return logits

    @staticmethod
    def _drafts_to_evaluate(mask: TokenMask, draft: list[int], limit: int) -> list[int]:
        """What is worth reading ahead under a constraint: what it forces, or as much of `draft` as it allows."""
        forced = mask.forced_tokens()[: max(0, min(limit, MAX_PASS_TOKENS - 1))]
        return forced if len(forced) >= len(draft) else draft[: mask.count_allowed(draft)]

    def _remaining_tokens(self) -> int:
        """Tokens that the reply may still have."""
        remaining = self._context + 1 - len(self._ids) - self._new_tokens
        return remaining if self._max_tokens is None else min(remaining, self._max_tokens - self._new_tokens)

    def _nearest_limit(self) -> FinishReason:
        """The limit that leaves the fewest tokens."""
        return (
            "length"
            if self._max_tokens is not None and self._remaining_tokens() == self._max_tokens - self._new_tokens
            else "context"
        )

    def _reason_to_stop(self) -> FinishReason | None:
        if self._cancelled():
            return "cancelled"
        if self._max_tokens is not None and self._new_tokens >= self._max_tokens:
            return "length"
        return "repetition" if self._is_repeating else None

    @property
    def _new_tokens(self) -> int:
        return len(self._generated) - self._continued

    def _stats(self) -> Stats:
        return Stats(
            prompt_tokens=len(self._ids),
            cached_tokens=self._reused,
            generated_tokens=self._new_tokens,
            prefill_seconds=self._prefill_seconds,
            decode_seconds=self._last_token_seconds - self._first_token_seconds,
            time_to_first_token=self._first_token_seconds or None,
            context=self._context,
            drafted_tokens=self._drafted,
            accepted_tokens=self._accepted,
            unread_tokens=len(self._ids) - self._evaluated,
        )
