"""What is asked of a model for one reply: plain data that the API, the chat and the engine pass on as one value."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Protocol

from quant.wording import Argument, ArgumentMessage
from qwchat.errors import UsageError
from qwchat.limits import MAX_LOGPROBS, MAX_PENALTY, MAX_TEMPERATURE

SEED_BITS = 32  # of a random seed: short enough to be read aloud and typed again


def random_seed() -> int:
    """Return a random seed of SEED_BITS bits."""
    return secrets.randbits(SEED_BITS)


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen.

    Attributes:
        temperature: 0 to 5; 0 takes the most likely token.
        top_k: keep the k most likely tokens; 0 is off.
        top_p: keep the most likely tokens that together reach this probability, above 0 to 1; 1 is off.
        min_p: drop tokens less likely than this share of the most likely one, 0 to 1; 0 is off.
        repeat_penalty: divides positive and multiplies negative logits of tokens that occur in prompt or reply,
            above 0; 1 is off (Keskar et al. 2019).
        presence_penalty: taken from the logit of every token that occurs in the reply, -2 to 2; 0 is off.
        frequency_penalty: taken from the logit once per occurrence in the reply, -2 to 2; 0 is off.

    Raises:
        UsageError: a value is out of its range; the message names the argument.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_number("top_p", self.top_p, 0.0, 1.0, above=True)
        _check_number("min_p", self.min_p, 0.0, 1.0)
        _check_number("repeat_penalty", self.repeat_penalty, 0.0, math.inf, above=True)
        _check_number("presence_penalty", self.presence_penalty, -MAX_PENALTY, MAX_PENALTY)
        _check_number("frequency_penalty", self.frequency_penalty, -MAX_PENALTY, MAX_PENALTY)
        top_k: object = self.top_k
        if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 0:
            raise UsageError(
                ArgumentMessage(Argument("top_k"), f" must be a whole number from 0 (0 is off), not {self.top_k!r}")
            )

    def changed(self, **values: float) -> SamplingParams:
        """Return a copy with other values, checked like the first."""
        return replace(self, **values)  # type: ignore[arg-type]  # top_k is checked to be whole at run time


class ReplyConstraint(Protocol):
    """What a reply must look like as a whole, such as a `qwchat.constraints.Constraint`."""

    @property
    def kind(self) -> str:
        """Name of the option: `choices`, `regex` or `json-schema`."""

    @property
    def grammar(self) -> str:
        """The constraint as a grammar for llguidance."""

    def fits(self, text: str) -> bool:
        """Return True if `text` meets the constraint."""


@dataclass(frozen=True)
class Request:
    """How one reply is generated, whatever its prompt.

    Attributes:
        settings: how tokens are chosen.
        seed: 0 to 2**64 - 1.
        max_tokens: longest reply in tokens; None lets it fill the context.
        stop: strings that end the reply and are not part of it. The engine, which knows no text, does not read them.
        speculate: evaluate draft tokens ahead where that saves time; the tokens are the same.
        loop_guard: stop after so many repeated tokens; 0 is off.
        constraint: what the reply must look like; the engine is given its mask instead.
        logprobs: how many of the most likely tokens each step reports, up to MAX_LOGPROBS; 0 is off.

    Raises:
        UsageError: `logprobs` is out of its range.
    """

    settings: SamplingParams
    seed: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True
    loop_guard: int = 0
    constraint: ReplyConstraint | None = None
    logprobs: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(
                ArgumentMessage(Argument("logprobs"), f" must be from 0 to {MAX_LOGPROBS}, not {self.logprobs}")
            )


@dataclass(frozen=True)
class Prompt:
    """A prompt as token ids, rendered once and passed on to whatever counts or evaluates it.

    Attributes:
        ids: its token ids.
        continued: how many of the last `ids` are a reply that was cut and is to be continued.
    """

    ids: Sequence[int]
    continued: int = 0

    @property
    def tokens(self) -> int:
        """Number of its tokens."""
        return len(self.ids)


def _check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    if not isinstance(value, bool) and isinstance(value, Real):
        number = float(value)
        if math.isfinite(number) and low <= number <= high and not (above and number == low):
            return
    start = f"above {low:g}" if above else f"from {low:g}"
    end = f" to {high:g}" if math.isfinite(high) else ""
    raise UsageError(ArgumentMessage(Argument(name), f" must be a number {start}{end}, not {value!r}"))
