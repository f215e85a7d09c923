"""The generation loop: evaluate the prompt, then choose one token after another.

Speculation. Tokens that followed an earlier occurrence of the newest tokens (`qwchat.generation.prompt_lookup`) are
drafts: they are evaluated together with the newest token, in one pass. Then tokens are drawn one after another, exactly
as without drafts: the n-th token from the logits after the n - 1 tokens before it, with the n-th number of the seed's
stream and with penalties that count all tokens before it. As long as the drawn token equals the draft, the logits
after it have already been computed. The first difference ends the pass, and the drafts after it are dropped.

The text is therefore, token by token, the text without speculation: neither the logits (bit for bit, in passes of up to
`Decoder.exact_rows` tokens, and no pass with drafts has more) nor the draws depend on how tokens are grouped into
passes. It is also rejection sampling in the sense of Leviathan et al. 2023 (https://arxiv.org/abs/2211.17192, section
2.3). There, drafts come from a distribution q and are accepted with probability min(1, p(x) / q(x)); otherwise a token
is drawn from the normalised excess of p over q. Here q is certain of x. So a draft is accepted with probability p(x),
and otherwise a token is drawn from p without x. Drawing once from p and comparing with x does exactly that, since
P(draw = x) = p(x) and P(draw = y | draw != x) = p(y) / (1 - p(x)), and it also keeps the text of the seed.

Forced tokens. The caller may close a thought: before each draw it may say which tokens come next. They are not
sampled, and like drafts they are evaluated together with the newest token.

Constraints. Before each draw the mask says which tokens are allowed, and it is told of each token that was chosen, also
within a pass: a draft that it rules out is never evaluated. Tokens that it forces are used as drafts, since they are
certain to be right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from qwchat.events import EngineEvent, Finished, FinishReason, Prefilled, Stats, TokenStep
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.repetition import RepetitionGuard
from qwchat.generation.sampling import Sampler, log_probabilities
from qwchat.generation.speculation import MAX_PASS_TOKENS, Drafter, DraftPolicy
from qwchat.generation.token_mask import TokenMask
from qwchat.model.decoder import PassCancelled
from qwchat.model.logit_rows import LogitRow
from qwchat.request import Request


class GenerationLoop:
    """State of one reply while it is generated: its times, its tokens, and why it ends.

    `Engine.generate` documents the arguments that are not listed here.

    Args:
        cached: the conversation.
        ids: the prompt, (tokens,) i64: at least one token, and not more than fit. The last `continued` of them are the
            reply so far.
        request: how to generate.
        sampler: chooses tokens; its next draw is the one after the prompt.
        draft_policy: decides how many tokens to draft; None never drafts.
        stop_ids: tokens that end the reply.
        cancel: returns True to cancel the reply.
        continued: number of tokens of the reply so far.
        mask: restricts the tokens that may be chosen.
        forced: returns the tokens that come next instead of sampled ones.
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
        forced: Callable[[], Sequence[int]] = tuple,
    ) -> None:
        self._start = time.perf_counter()
        self._cached, self._ids, self._sampler = cached, ids, sampler
        self._context = cached.decoder.context
        self._stop_ids, self._cancelled = stop_ids, cancel or (lambda: False)
        self._max_tokens, self._logprobs = request.max_tokens, request.logprobs
        self._drafter = None if draft_policy is None else Drafter(ids, draft_policy, stop_ids)
        # The last token is always evaluated again, since its logits are needed.
        self._reused = min(cached.count_cached(ids), len(ids) - 1)
        cached.truncate(self._reused)
        self._prompt, self._continued = ids[: len(ids) - continued], continued
        self._generated: list[int] = ids[len(ids) - continued :].tolist()
        self._repetition_guard = RepetitionGuard(request.loop_guard) if request.loop_guard else None
        self._is_repeating = False
        self._mask, self._forced = mask, forced
        self._drafted = self._accepted = 0
        self._evaluated = self._reused  # of the prompt
        self._prefill_seconds = self._first_token_seconds = self._last_token_seconds = 0.0

    def _elapsed(self) -> float:
        return time.perf_counter() - self._start

    def events(self) -> Iterator[EngineEvent]:
        """Yield the events of `Engine.generate`."""
        try:
            reason = yield from self._generate()
        except PassCancelled:
            reason = "cancelled"
        yield Finished(reason, self._stats())

    def _generate(self) -> Generator[EngineEvent, None, FinishReason]:
        """Yield the events but the last; return the reason why the reply ends."""
        logits: list[LogitRow] = []
        chunk = self._cached.decoder.chunk
        for start in range(self._reused, len(self._ids), chunk):
            if self._cancelled():
                break
            piece = self._ids[start : start + chunk]
            last = start + len(piece) == len(self._ids)
            logits = self._cached.evaluate(piece, len(piece) - 1 if last else len(piece), cancelled=self._cancelled)
            self._prefill_seconds, self._evaluated = self._elapsed(), start + len(piece)
            yield Prefilled(self._evaluated, len(self._ids), self._reused)
        if not logits:
            return "cancelled"
        return (yield from self._decode(logits))

    def _decode(self, logits: list[LogitRow]) -> Generator[EngineEvent, None, FinishReason]:
        """Generate from `logits`, the row after the prompt; return why the reply ends."""
        if self._mask is not None and self._mask.finished:
            return "stop"
        while True:
            for row in logits:
                if end := self._reason_to_stop():
                    return end
                token = self._choose(row)
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

    def _choose(self, row: LogitRow) -> int:
        """Return the next token: the forced one, or one sampled from its logits."""
        if forced := self._forced():
            self._sampler.skip()
            return forced[0]
        allowed = None if self._mask is None else self._mask.allowed()
        return self._sampler.sample_row(row, self._prompt, self._generated, allowed)

    def _step(self, token: int, row: LogitRow) -> TokenStep:
        if not self._logprobs:
            return TokenStep(token)
        logprob, likeliest = log_probabilities(row.values()[: self._sampler.usable_vocab], token, self._logprobs)
        return TokenStep(token, logprob, tuple(likeliest))

    def _evaluate(self, token: int) -> list[LogitRow]:
        """Evaluate `token` and the drafts after it; return 1 + drafts rows of logits."""
        if self._drafter is None:
            return self._cached.evaluate(np.array([token], np.int64), 0, cancelled=self._cancelled)
        limit = min(self._context - self._cached.length, self._cached.decoder.exact_rows) - 1
        if self._max_tokens is not None:
            limit = min(limit, self._max_tokens - self._new_tokens - 1)
        draft = list(self._forced()[: max(0, min(limit, MAX_PASS_TOKENS - 1))])
        if not draft:
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
        """Return the tokens that the mask forces, or the part of `draft` that it allows, whichever is longer."""
        forced = mask.forced_tokens()[: max(0, min(limit, MAX_PASS_TOKENS - 1))]
        return forced if len(forced) >= len(draft) else draft[: mask.count_allowed(draft)]

    def _remaining_tokens(self) -> int:
        """Return how many more tokens the reply may have."""
        remaining = self._context + 1 - len(self._ids) - self._new_tokens
        return remaining if self._max_tokens is None else min(remaining, self._max_tokens - self._new_tokens)

    def _nearest_limit(self) -> FinishReason:
        """Return the reason of the limit that leaves the fewest tokens."""
        return (
            "length"
            if self._max_tokens is not None and self._remaining_tokens() == self._max_tokens - self._new_tokens
            else "context"
        )

    def _reason_to_stop(self) -> FinishReason | None:
        """Return why the reply ends here, if it does."""
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
