"""What a person can turn during a conversation: sampling, seed, length, stop strings, speculation."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwchat.errors import UsageError

if TYPE_CHECKING:
    from qwchat.sampling import SamplingSettings

# The name on the command line and in /set, the field of SamplingSettings, and the type of its values.
SAMPLING: dict[str, tuple[str, type[int] | type[float]]] = {
    "temp": ("temperature", float),
    "top-p": ("top_p", float),
    "top-k": ("top_k", int),
    "min-p": ("min_p", float),
    "repeat-penalty": ("repeat_penalty", float),
    "presence-penalty": ("presence_penalty", float),
    "frequency-penalty": ("frequency_penalty", float),
}
NAMES = (*SAMPLING, "seed", "max-tokens", "stop", "speculate")
SWITCH = {"on": True, "off": False}
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Controls:
    """Settings of the replies to come.

    Attributes:
        settings: how tokens are chosen.
        seed: the seed of every reply; None draws a new one each time.
        max_tokens: longest reply in tokens; None lets it fill the context.
        stop: texts that end a reply.
        speculate: guess tokens from the text so far where that saves time.
    """

    settings: SamplingSettings
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True

    @property
    def sampled(self) -> bool:
        """Whether chance, and so the seed, plays a part."""
        return self.settings.temperature > 0

    def shown(self, name: str) -> str:
        """The value of ``name`` as a person would type it. Raises UsageError for an unknown name."""
        known = _known(name)
        if known in SAMPLING:
            return f"{getattr(self.settings, SAMPLING[known][0]):g}"
        if known == "seed":
            return "random" if self.seed is None else str(self.seed)
        if known == "max-tokens":
            return "none" if self.max_tokens is None else str(self.max_tokens)
        if known == "speculate":
            return "on" if self.speculate else "off"
        return " ".join(repr(text) for text in self.stop) or "none"

    def changed(self, name: str, value: str, defaults: Controls) -> Controls:
        """A copy with ``name`` set to ``value``; "default" takes the value of ``defaults``.

        "random" frees the seed, "none" lifts max-tokens and clears stop. Raises UsageError for an unknown name and for
        a value that is no number or out of range.
        """
        known = _known(name)
        if known in SAMPLING:
            field, kind = SAMPLING[known]
            wanted = getattr(defaults.settings, field) if value == "default" else _number(known, value, kind)
            return replace(self, settings=self.settings.changed(**{field: wanted}))
        if value == "default":
            field = known.replace("-", "_")
            return replace(self, **{field: getattr(defaults, field)})
        if known == "seed":
            return replace(self, seed=None if value == "random" else _whole(known, value, 0, MAX_SEED))
        if known == "max-tokens":
            return replace(self, max_tokens=None if value == "none" else _whole(known, value, 1, None))
        if known == "speculate":
            if value not in SWITCH:
                raise UsageError(f"speculate takes on or off, not {value}")
            return replace(self, speculate=SWITCH[value])
        return replace(self, stop=() if value == "none" else (value,))


def _known(name: str) -> str:
    wanted = name.lower().lstrip("-").replace("_", "-")
    if wanted in NAMES:
        return wanted
    close = difflib.get_close_matches(wanted, NAMES, n=1)
    hint = f"did you mean {close[0]}?" if close else "there are " + ", ".join(NAMES)
    raise UsageError(f"there is no setting {name!r}: {hint}")


def _number(name: str, value: str, kind: type[int] | type[float]) -> float:
    try:
        return kind(value)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise UsageError(f"{name} takes {wanted}, not {value!r}") from None


def _whole(name: str, value: str, lowest: int, highest: int | None) -> int:
    number = int(_number(name, value, int))
    if number < lowest or (highest is not None and number > highest):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise UsageError(f"{name} must be {limits}, not {number}")
    return number
