"""What a running generation reports: plain data, for the engine (tokens) and for the chat (text)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "context", "cancelled", "repetition"]


@dataclass(frozen=True)
class Stats:
    """Counts and wall-clock seconds of one reply.

    `drafted_tokens` were guessed and checked together with others, `accepted_tokens` of them were right.
    `unread_tokens`: of the prompt, where the reply was stopped before all of it was read.  `prefill_seconds`: until
    the last prompt token that was read.  `time_to_first_token`: None where no token came.
    """

    prompt_tokens: int
    cached_tokens: int
    generated_tokens: int
    prefill_seconds: float
    decode_seconds: float
    time_to_first_token: float | None
    context: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    unread_tokens: int = 0

    @property
    def evaluated_tokens(self) -> int:
        """Prompt tokens that were read; those that the cache held already do not count."""
        return self.prompt_tokens - self.cached_tokens - self.unread_tokens

    @property
    def prefill_rate(self) -> float:
        """Newly read prompt tokens per second; 0.0 when nothing was read."""
        return (
            self.evaluated_tokens / self.prefill_seconds
            if self.prefill_seconds > 0 and self.evaluated_tokens > 0
            else 0.0
        )

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first one (the first belongs to the prefill); 0.0 when there is no second."""
        later = self.generated_tokens - 1
        return later / self.decode_seconds if self.decode_seconds > 0 and later > 0 else 0.0

    @property
    def context_used(self) -> int:
        """Positions of the context that the prompt and the reply fill; the last token of a full one needs none."""
        return min(self.prompt_tokens - self.unread_tokens + self.generated_tokens, self.context)


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are in the cache; `cached` of them were there before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class TokenStep:
    """One generated token (never the stop token).

    Where log-probabilities were asked for: `logprob` is the token's, `likeliest` the ids with the highest ones and
    theirs (see :func:`qwchat.generation.sampling.log_probabilities`).
    """

    token_id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a generation at the level of tokens."""

    reason: FinishReason
    stats: Stats


@dataclass(frozen=True)
class TokenLogprob:
    """A token, its text (U+FFFD for bytes that are no characters by themselves) and the log of its probability.

    `top`: the likeliest tokens in its place, best first.
    """

    token_id: int
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextStep:
    """One generated token as text; `text` is empty while bytes or a possible stop string are held back.

    `token_id` is None for what was still held back when the reply ended.
    """

    text: str
    token_id: int | None
    logprob: TokenLogprob | None = None


@dataclass(frozen=True)
class Done:
    """The end of a reply at the level of text: the whole of it, and how it came about.

    Of a continued reply, `text` and `token_ids` hold what came before as well.
    `meets_constraint`: whether `text` is what a constraint asked for; None without one.  `logprobs`: one per new
    token, where they were asked for.
    """

    finish_reason: FinishReason
    stats: Stats
    text: str
    token_ids: tuple[int, ...]
    seed: int
    meets_constraint: bool | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


EngineEvent = Prefilled | TokenStep | Finished
TextEvent = Prefilled | TextStep | Done
