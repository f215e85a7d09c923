"""Parameters of one reply, as plain data that the API, the chat and the engine share."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Protocol

from quant.wording import Argument, ArgumentMessage
from qwchat.errors import UsageError
from qwchat.limits import MAX_LOGPROBS, MAX_PENALTY, MAX_TEMPERATURE
from qwchat.reasoning import ReasoningStart

SEED_BITS = 32  # short enough to copy by hand


def random_seed() -> int:
    """Return a random seed of SEED_BITS bits."""
    return secrets.randbits(SEED_BITS)


@dataclass(frozen=True)
class SamplingParams:
    """Parameters for sampling the next token.

    Attributes:
        temperature: 0 to 5; 0 is greedy.
        top_k: sample from the k most likely tokens; 0 is off.
        top_p: sample from the most likely tokens with this total probability, above 0 to 1; 1 is off.
        min_p: drop tokens below this share of the top probability, 0 to 1; 0 is off.
        repeat_penalty: divides positive and multiplies negative logits of tokens in the prompt or reply, above 0; 1 is
            off (Keskar et al. 2019).
        presence_penalty: subtracted from the logit of every token in the reply, -2 to 2; 0 is off.
        frequency_penalty: subtracted from the logit once per occurrence in the reply, -2 to 2; 0 is off.

    Raises:
        UsageError: a value is out of range; the message names the argument.
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
                ArgumentMessage(
                    Argument("top_k"), f" must be a whole number of at least 0 (0 = off), not {self.top_k!r}"
                )
            )

    def changed(self, **values: float) -> SamplingParams:
        """Return a copy with other values. Raises UsageError if one is out of range."""
        return replace(self, **values)  # type: ignore[arg-type]  # top_k is checked to be whole at run time


class ReplyConstraint(Protocol):
    """What the whole reply must match, such as a `qwchat.constraints.Constraint`."""

    @property
    def kind(self) -> str:
        """Name of the option: `choices`, `regex` or `json-schema`."""

    @property
    def source(self) -> str:
        """The constraint as given; choices are separated by commas, with a backslash before a comma in one."""

    @property
    def grammar(self) -> str:
        """The constraint as an llguidance grammar."""

    def fits(self, text: str) -> bool:
        """Return True if `text` meets the constraint."""


@dataclass(frozen=True)
class Request:
    """How to generate one reply, independent of its prompt.

    Attributes:
        settings: sampling parameters.
        seed: 0 to 2**64 - 1.
        max_tokens: maximum length of the reply in tokens; None generates until the context window is full.
        stop: strings that end the reply and are not part of it. The engine ignores them, since it handles no text.
        speculate: evaluate draft tokens if that saves time; the output is the same.
        loop_guard: stop after this many repeated tokens; 0 is off.
        constraint: what the reply must match; the engine gets a token mask instead.
        logprobs: number of most likely tokens to report per step, up to MAX_LOGPROBS; 0 is off.
        think_budget: close a thought after this many tokens; 0 is off. The engine gets the tokens that close it.
        unset: names of sampling parameters that were not set, which a server chooses itself. The engine ignores it.

    Raises:
        UsageError: `logprobs` or `think_budget` is out of range.
    """

    settings: SamplingParams
    seed: int
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True
    loop_guard: int = 0
    constraint: ReplyConstraint | None = None
    logprobs: int = 0
    think_budget: int = 0
    unset: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.think_budget < 0:
            raise UsageError(
                ArgumentMessage(Argument("think_budget"), f" must be at least 0 (0 = off), not {self.think_budget}")
            )
        if not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise UsageError(
                ArgumentMessage(Argument("logprobs"), f" must be from 0 to {MAX_LOGPROBS}, not {self.logprobs}")
            )


@dataclass(frozen=True)
class PromptOptions:
    """How to render the prompt of a conversation.

    Attributes:
        thinking: False asks the template to leave out the thought (`enable_thinking`), which some cannot.
        keep_thoughts: earlier replies keep their thoughts, so that their tokens stay in the KV cache. Otherwise the
            template decides, and most leave thoughts out.
        template_variables: JSON values of other variables of the template, by name.
    """

    thinking: bool = True
    keep_thoughts: bool = False
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def variables(self) -> dict[str, Any]:
        """All variables for the template."""
        return {**self.template_variables, **({} if self.thinking else {"enable_thinking": False})}


@dataclass(frozen=True)
class Prompt:
    """A rendered prompt.

    Attributes:
        ids: its token ids.
        continued: number of ids at the end that belong to an unfinished reply, which is to be continued.
        reasoning: how the reply begins, before the part to be continued.
        estimated: True if only the number of `ids` is meant, and is an estimate: a server has the tokenizer.
    """

    ids: Sequence[int]
    continued: int = 0
    reasoning: ReasoningStart = "none"
    estimated: bool = False

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.ids)


def _check_number(name: str, value: object, low: float, high: float, *, above: bool = False) -> None:
    if not isinstance(value, bool) and isinstance(value, Real):
        number = float(value)
        if math.isfinite(number) and low <= number <= high and not (above and number == low):
            return
    start = f"above {low:g}" if above else f"from {low:g}"
    end = f" to {high:g}" if math.isfinite(high) else ""
    raise UsageError(ArgumentMessage(Argument(name), f" must be a number {start}{end}, not {value!r}"))
