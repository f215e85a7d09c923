"""Events and figures of a running generation, as tokens (engine) and as text (API and chat)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length", "context", "cancelled", "repetition"]


@dataclass(frozen=True)
class Stats:
    """Token counts and wall-clock seconds of one reply.

    Attributes:
        prompt_tokens: tokens of the prompt.
        cached_tokens: prompt tokens that were in the KV cache already.
        generated_tokens: tokens of the reply.
        prefill_seconds: time until the last evaluated prompt token.
        decode_seconds: time after the first token.
        time_to_first_token: seconds; None if no token was generated.
        context: size of the context window.
        drafted_tokens: draft tokens that were evaluated.
        accepted_tokens: draft tokens that were accepted.
        unread_tokens: prompt tokens that were not evaluated because the reply was stopped during prefill.
        reasoning_tokens: tokens of the thought with its tags; for a continued reply, those of the earlier part too.
        estimated: True if token counts are estimates, because a server did not report them.
        unknown: names of figures in the JSON output that a server does not report.
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
    reasoning_tokens: int = 0
    estimated: bool = False
    unknown: tuple[str, ...] = ()

    @property
    def evaluated_tokens(self) -> int:
        """Prompt tokens that were evaluated, without those from the KV cache."""
        return self.prompt_tokens - self.cached_tokens - self.unread_tokens

    @property
    def prefill_rate(self) -> float:
        """Evaluated prompt tokens per second; 0.0 if none were evaluated."""
        return (
            self.evaluated_tokens / self.prefill_seconds
            if self.prefill_seconds > 0 and self.evaluated_tokens > 0
            else 0.0
        )

    @property
    def decode_rate(self) -> float:
        """Tokens per second after the first token, which belongs to prefill; 0.0 if there is no second token."""
        later = self.generated_tokens - 1
        return later / self.decode_seconds if self.decode_seconds > 0 and later > 0 else 0.0

    @property
    def context_used(self) -> int:
        """Positions that prompt and reply occupy; the last token of a full context needs none."""
        return min(self.prompt_tokens - self.unread_tokens + self.generated_tokens, self.context)


@dataclass(frozen=True)
class Prefilled:
    """`done` of `total` prompt tokens are in the KV cache; `cached` of them were there before."""

    done: int
    total: int
    cached: int


@dataclass(frozen=True)
class TokenStep:
    """One generated token; never the stop token.

    Attributes:
        token_id: the token.
        logprob: its log-probability, if requested.
        likeliest: (token id, log-probability) of the most likely tokens, if requested; see
            `qwchat.generation.sampling.log_probabilities`.
    """

    token_id: int
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """The end of a generation, at the level of tokens."""

    reason: FinishReason
    stats: Stats


@dataclass(frozen=True)
class TokenLogprob:
    """A token with its text and log-probability.

    Attributes:
        token_id: the token; None if a server does not report it.
        text: its text; U+FFFD for bytes that are not characters on their own.
        logprob: natural logarithm of its probability.
        top: the most likely tokens at this position, best first.
    """

    token_id: int | None
    text: str
    logprob: float
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class TextStep:
    """One generated token as text.

    Attributes:
        text: empty while bytes of a character or a possible stop string are held back.
        token_id: None for text that was held back, at the end of the reply or of the thought, and for text of a server,
            which does not report it.
        logprob: the token's log-probability, if requested.
        reasoning: True for tokens of the thought and its tags.
        unnamed_tokens: number of tokens without a `token_id` in this step.
    """

    text: str
    token_id: int | None
    logprob: TokenLogprob | None = None
    reasoning: bool = False
    unnamed_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Number of tokens that this step adds to the reply."""
        return self.unnamed_tokens + (self.token_id is not None)


@dataclass(frozen=True)
class Done:
    """The end of a reply, at the level of text. For a continued reply it covers the earlier part too.

    Attributes:
        finish_reason: why the reply ended.
        stats: its figures.
        text: the whole reply without its thought.
        token_ids: its tokens.
        seed: the random seed that was used.
        meets_constraint: True if `text` meets its constraint; None without a constraint.
        logprobs: one entry per new token, if requested.
        reasoning: the thought of a reasoning model, without its tags.
        raw_text: thought, tags and answer as the model wrote them; None if the reply has no thought.
        reasoning_truncated: True if the budget of the request closed the thought.
    """

    finish_reason: FinishReason
    stats: Stats
    text: str
    token_ids: tuple[int, ...]
    seed: int
    meets_constraint: bool | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    reasoning: str = ""
    raw_text: str | None = None
    reasoning_truncated: bool = False

    @property
    def content(self) -> str:
        """The text that belongs to `token_ids`, for the messages of the next prompt."""
        return self.text if self.raw_text is None else self.raw_text


EngineEvent = Prefilled | TokenStep | Finished
TextEvent = Prefilled | TextStep | Done
