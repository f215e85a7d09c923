"""Chunks of a chat completion, as plain data of known types. What a server sends is untrusted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.json_fields import is_int_between
from qwchat.events import TokenLogprob
from qwchat.limits import MAX_INTEGER, MAX_LOGPROBS

_MAX_MILLISECONDS = 1e9


@dataclass(frozen=True)
class Usage:
    """Token counts of a reply; None for those that the server does not report."""

    prompt: int | None = None
    generated: int | None = None
    cached: int | None = None
    reasoning: int | None = None


@dataclass(frozen=True)
class Timings:
    """Seconds that the server measured; None for those that it does not report."""

    prefill: float | None = None
    decode: float | None = None


@dataclass(frozen=True)
class Chunk:
    """One chunk of a reply.

    Attributes:
        text: text of the answer.
        reasoning: text of the thought.
        finish_reason: why the reply ended, or "" before its end.
        logprobs: tokens with their log-probabilities.
        usage: token counts of the whole reply.
        timings: times of the whole reply.
    """

    text: str = ""
    reasoning: str = ""
    finish_reason: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage = Usage()
    timings: Timings = Timings()


def parse_chunk(value: Mapping[str, Any]) -> Chunk:
    """Return what a chunk, or a whole completion, says. Fields of the wrong type count as missing."""
    choice = _first_choice(value)
    delta = _mapping(choice, "delta") or _mapping(choice, "message")
    reason = choice.get("finish_reason")
    thought = _text(delta.get("reasoning_content")) or _text(delta.get("reasoning"))
    return Chunk(
        _text(delta.get("content")),
        thought,
        reason if isinstance(reason, str) else "",
        _logprobs(choice.get("logprobs")),
        _usage(value),
        _timings(value.get("timings")),
    )


def _first_choice(value: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = value.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        if isinstance(choice, Mapping) and choice.get("index", 0) == 0:
            return choice
    return {}


def _text(value: object) -> str:
    """Return a text, or the texts of a list of parts."""
    if isinstance(value, list):
        return "".join(_text(part.get("text")) for part in value if isinstance(part, Mapping))
    return value if isinstance(value, str) else ""


def _usage(chunk: Mapping[str, Any]) -> Usage:
    usage = chunk.get("usage")
    if not isinstance(usage, Mapping):
        return Usage()
    prompt, generated = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = _count(_mapping(usage, "prompt_tokens_details"), "cached_tokens")
    if cached is None:
        cached = _count(_mapping(chunk, "timings"), "cache_n")
    reasoning = _count(_mapping(usage, "completion_tokens_details"), "reasoning_tokens")
    return Usage(prompt, generated, _at_most(cached, prompt), _at_most(reasoning, generated))


def _timings(value: object) -> Timings:
    if not isinstance(value, Mapping):
        return Timings()
    return Timings(_seconds(value.get("prompt_ms")), _seconds(value.get("predicted_ms")))


def _mapping(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = values.get(name)
    return value if isinstance(value, Mapping) else {}


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    return value if is_int_between(value, 0, MAX_INTEGER) else None


def _at_most(count: int | None, limit: int | None) -> int | None:
    return count if count is None or limit is None or count <= limit else None


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > _MAX_MILLISECONDS:
        return None
    return float(value) if math.isfinite(value) else None


def _seconds(milliseconds: object) -> float | None:
    number = _number(milliseconds)
    return number / 1000 if number is not None and number >= 0 else None


def _logprobs(value: object) -> tuple[TokenLogprob, ...]:
    content = value.get("content") if isinstance(value, Mapping) else None
    entries = content if isinstance(content, list) else ()
    return tuple(found for entry in entries if (found := _logprob(entry)) is not None)


def _logprob(entry: object, *, with_top: bool = True) -> TokenLogprob | None:
    number = _number(entry.get("logprob")) if isinstance(entry, Mapping) else None
    if number is None or not isinstance(entry, Mapping):
        return None
    listed = entry.get("top_logprobs") if with_top else None
    tops = (_logprob(top, with_top=False) for top in (listed if isinstance(listed, list) else [])[:MAX_LOGPROBS])
    text = _text(entry.get("token")).encode("utf-8", "replace").decode()
    return TokenLogprob(None, text, number, tuple(top for top in tops if top is not None))
