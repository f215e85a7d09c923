"""Figures of a reply: the line below it, its JSON form, totals, and why it ended early."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from quant.wording import Argument, ArgumentMessage, SuggestedArgument
from qwchat.chat.formatting import short_duration, token_count
from qwchat.events import Done, Stats

StatsFormat = Literal["line", "json", "off"]


def statistics_line(done: Done, *, sampled: bool, form: StatsFormat = "line", columns: int | None = None) -> str:
    """Return the figures of a reply as a line, as a JSON object, or "".

    `columns`: a wider line is shortened: first the cached and the draft tokens go, then words, then other figures.
    """
    if form == "off":
        return ""
    if form == "json":
        import json

        return json.dumps({"finish_reason": done.finish_reason, **figures(done), "seed": done.seed})
    return _fit_line(done, sampled=sampled, columns=columns)


def figures(done: Done) -> dict[str, object]:
    """Return token counts, seconds and tokens per second for JSON. Figures that a server does not report are None.

    Of the `prompt` tokens, `cached` were in the KV cache and `read` were evaluated; if the reply was stopped, the rest
    were not. Of the `drafted` tokens, `accepted` became part of the reply. `reasoning` counts the tokens of a thought
    and is missing if the reply has none. The time to the first token is None if the reply has no token. `estimated` is
    True if a server did not report its counts.
    """
    stats = done.stats
    first = stats.time_to_first_token
    found: dict[str, dict[str, object]] = {
        "tokens": {
            "prompt": stats.prompt_tokens,
            "cached": stats.cached_tokens,
            "read": stats.evaluated_tokens,
            "generated": stats.generated_tokens,
            "drafted": stats.drafted_tokens,
            "accepted": stats.accepted_tokens,
            "context": stats.context,
            "context_used": stats.context_used,
            **({"reasoning": stats.reasoning_tokens} if stats.reasoning_tokens else {}),
            **({"estimated": True} if stats.estimated else {}),
        },
        "timings": {
            "time_to_first_token": None if first is None else round(first, 6),
            "prefill_seconds": round(stats.prefill_seconds, 6),
            "decode_seconds": round(stats.decode_seconds, 6),
            "prefill_tokens_per_second": round(stats.prefill_rate, 3),
            "decode_tokens_per_second": round(stats.decode_rate, 3),
        },
    }
    return {
        group: {name: None if name in stats.unknown else value for name, value in values.items()}
        for group, values in found.items()
    }


def totals(replies: Sequence[Stats]) -> list[tuple[str, str]]:
    """Return names and values of the combined figures of all replies, including those without a token."""
    read = sum(stats.evaluated_tokens for stats in replies)
    cached = sum(stats.cached_tokens for stats in replies)
    generated = sum(stats.generated_tokens for stats in replies)
    prefill = sum(stats.prefill_seconds for stats in replies)
    decode = sum(stats.decode_seconds for stats in replies)
    decoded = sum(max(stats.generated_tokens - 1, 0) for stats in replies)
    drafted = sum(stats.drafted_tokens for stats in replies)
    rows = [
        ("prompts", f"{token_count(read + cached)}, {cached:,} cached ({_percent(cached, read + cached)})"),
        ("prefill", f"{token_count(read)}{_duration_and_rate(prefill, read)}"),
        ("generated", f"{token_count(generated)}{_duration_and_rate(decode, decoded)}"),
    ]
    if drafted:
        rows.append(("drafts", f"{token_count(drafted)}, {sum(stats.accepted_tokens for stats in replies):,} accepted"))
    waits = [stats.time_to_first_token for stats in replies if stats.time_to_first_token is not None]
    if waits:
        rows.append(
            (
                "first token",
                f"{short_duration(sum(waits) / len(waits))} on average, {short_duration(max(waits))} at most",
            )
        )
    return rows


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.0f} %"


def _duration_and_rate(seconds: float, tokens: float) -> str:
    return f" in {short_duration(seconds)}" + (f", {_rate(tokens / seconds)}" if seconds > 0 and tokens > 0 else "")


class _Figure(NamedTuple):
    """A figure of the line, with shorter forms; a short form of "" leaves it out."""

    long: str
    short: str = ""
    medium: str = ""


# What a narrow line shortens first, and then leaves out, in this order. The context always stays.
_SHORTENED = ("drafts", "context", "prefill", "decode", "first", "prompt")
_LEFT_OUT = ("prefill", "prompt", "seed", "first", "decode")


def _fit_line(done: Done, *, sampled: bool, columns: int | None) -> str:
    """Return the longest line of at most `columns` columns: in full, shortened, or without some figures."""
    parts = _figures(done, sampled=sampled)
    shown = {name: part.long for name, part in parts.items()}
    smaller = [(name, part.medium) for name, part in parts.items() if part.medium]
    smaller += [(name, parts[name].short) for name in _SHORTENED if name in parts]
    for name, text in [*smaller, *((name, "") for name in _LEFT_OUT if name in parts)]:
        if columns is None or len(_join(shown)) <= columns:
            break
        shown[name] = text
    return _join(shown)


def _join(parts: Mapping[str, str]) -> str:
    return " · ".join(text for text in parts.values() if text)


def _figures(done: Done, *, sampled: bool) -> dict[str, _Figure]:
    """Return the figures in their order, without those that do not apply."""
    stats = done.stats
    parts: dict[str, _Figure] = {}
    if stats.time_to_first_token is not None:
        seconds = short_duration(stats.time_to_first_token)
        parts["first"] = _Figure(f"{seconds} to first token", seconds)
    parts["prompt"] = _prompt_figure(stats)
    if stats.prefill_rate:
        rate = _format_rate(stats.prefill_rate)
        parts["prefill"] = _Figure(f"prefill {rate} tok/s", f"prefill {rate}/s")
    if stats.decode_rate:
        rate = _format_rate(stats.decode_rate)
        parts["decode"] = _Figure(f"decode {rate} tok/s", f"decode {rate}/s")
    if _drafts_helped(stats):
        parts["drafts"] = _Figure(f"{stats.accepted_tokens:,} of {stats.drafted_tokens:,} draft tokens accepted")
    context = f"{_about(stats)}{stats.context_used:,}/{stats.context:,}"
    parts["context"] = _Figure(f"context {context}", f"ctx {context}")
    if sampled:
        parts["seed"] = _Figure(f"seed {done.seed}", f"seed {done.seed}")
    return parts


def _prompt_figure(stats: Stats) -> _Figure:
    """Return the prompt tokens, new and cached, or how far an interrupted prefill came."""
    new = f" ({stats.evaluated_tokens:,} new)" if stats.cached_tokens else ""
    both = f" ({stats.evaluated_tokens:,} new, {stats.cached_tokens:,} cached)" if stats.cached_tokens else ""
    if stats.unread_tokens:
        position, total = stats.prompt_tokens - stats.unread_tokens, f"{stats.prompt_tokens:,}"
        text, short = f"stopped after {position:,} of {total} prompt tokens", f"stopped at {position:,}/{total}"
    else:
        noun = "token" if stats.prompt_tokens == 1 else "tokens"
        about = _about(stats)
        text, short = f"{about}{stats.prompt_tokens:,} prompt {noun}", f"{about}{stats.evaluated_tokens:,} new"
    return _Figure(text + both, short, text + new)


def _about(stats: Stats) -> str:
    """Return the sign before a count that is an estimate."""
    return "~" if stats.estimated else ""


def _drafts_helped(stats: Stats) -> bool:
    """Return whether draft tokens saved a tenth of the forward passes; each accepted one saves a pass."""
    return stats.accepted_tokens > 0 and 10 * stats.accepted_tokens >= stats.generated_tokens - 1


def ending_notice(done: Done, max_tokens: int | None, *, chat: bool = False) -> ArgumentMessage | None:
    """Explain why a reply ended before the model ended it, or without an answer. Return None for other replies.

    `chat`: in a chat, where the reply can be continued.
    """
    limit = "the token limit" if max_tokens is None else Argument("max_tokens", max_tokens)
    if done.meets_constraint and done.finish_reason in ("length", "context"):
        return ArgumentMessage(
            "the reply was ended early to fit ", limit if done.finish_reason == "length" else "the context"
        )
    go_on = "; /continue resumes it" if chat else ""
    unfinished_thought = bool(done.reasoning) and not done.text
    if unfinished_thought and done.finish_reason == "stop":
        shown = "/think" if chat else SuggestedArgument("think", "show")
        return ArgumentMessage("the reply has a thought and no answer; ", shown, " shows the thought")
    if done.finish_reason == "length":
        thinking = " while thinking," if unfinished_thought else ""
        return ArgumentMessage(f"the reply was cut off{thinking} at ", limit, go_on)
    if done.finish_reason == "context":
        longer = ArgumentMessage(SuggestedArgument("context", ...), " allows a larger one")
        remedy = "/drop or /summarise frees tokens, /continue resumes it" if chat else longer
        return ArgumentMessage(f"the reply was cut off: the context of {done.stats.context:,} tokens is full; ", remedy)
    if done.finish_reason == "repetition":
        penalty = ArgumentMessage(
            SuggestedArgument("repeat_penalty", 1.1), " and /retry may help" if chat else " may help"
        )
        unguarded = ArgumentMessage(", ", SuggestedArgument("loop_guard", 0), " disables the check")
        return ArgumentMessage("the reply repeated itself and was stopped; ", penalty, go_on or unguarded)
    return None


def _rate(tokens_per_second: float) -> str:
    return f"{_format_rate(tokens_per_second)} tok/s"


def _format_rate(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 100 else 1}f}"
