"""The line of figures after a reply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from qwchat.chat.view.units import token_count, wait
from qwchat.events import Done, Stats

Form = Literal["line", "json", "off"]


def statistics_line(done: Done, *, sampled: bool, form: Form = "line", columns: int | None = None) -> str:
    """The figures of a reply for people, as one JSON object for programs, or nothing.

    ``columns``: where people's figures would be wider than that, the drafts are left out, and then most words.
    """
    if form == "off":
        return ""
    if form == "json":
        import json

        return json.dumps({"finish_reason": done.finish_reason, **figures(done), "seed": done.seed})
    lines = [_for_people(done, sampled=sampled), _for_people(done, sampled=sampled, drafts=False)]
    lines += [_for_few_columns(done, sampled=sampled), _for_few_columns(done, sampled=sampled, named=False)]
    return next((line for line in lines if columns is None or len(line) <= columns), lines[-1])


def figures(done: Done) -> dict[str, object]:
    """Counts in tokens, timings in seconds and tokens per second.

    Of the generated tokens ``accepted`` were among the ``drafted`` ones.
    """
    stats = done.stats
    return {
        "tokens": {
            "prompt": stats.prompt_tokens,
            "cached": stats.cached_tokens,
            "generated": stats.generated_tokens,
            "drafted": stats.drafted_tokens,
            "accepted": stats.accepted_tokens,
            "context": stats.context,
            "context_used": stats.context_used,
        },
        "timings": {
            "time_to_first_token": round(stats.time_to_first_token, 6),
            "prefill_seconds": round(stats.prefill_seconds, 6),
            "decode_seconds": round(stats.decode_seconds, 6),
            "prefill_tokens_per_second": round(stats.prefill_rate, 3),
            "decode_tokens_per_second": round(stats.decode_rate, 3),
        },
    }


def totals(replies: Sequence[Stats]) -> list[tuple[str, str]]:
    """Names and values: what the replies of a conversation read, wrote and took together."""
    prompt = sum(stats.prompt_tokens for stats in replies)
    cached = sum(stats.cached_tokens for stats in replies)
    generated = sum(stats.generated_tokens for stats in replies)
    prefill = sum(stats.prefill_seconds for stats in replies)
    decode = sum(stats.decode_seconds for stats in replies)
    later = sum(max(stats.generated_tokens - 1, 0) for stats in replies)
    drafted = sum(stats.drafted_tokens for stats in replies)
    rows = [
        ("prompts", f"{token_count(prompt)}, {cached:,} of them cached ({100 * cached / max(prompt, 1):.0f} %)"),
        ("read", f"{token_count(prompt - cached)}{_in(prefill, prompt - cached)}"),
        ("written", f"{token_count(generated)}{_in(decode, later)}"),
    ]
    if drafted:
        rows.append(
            ("drafted", f"{token_count(drafted)}, {sum(stats.accepted_tokens for stats in replies):,} accepted")
        )
    waits = [stats.time_to_first_token for stats in replies]
    rows.append(("first token", f"after {wait(sum(waits) / len(waits))} on average, {wait(max(waits))} at most"))
    return rows


def _in(seconds: float, tokens: float) -> str:
    return f" in {wait(seconds)}" + (f", {_rate(tokens / seconds)}" if seconds > 0 and tokens > 0 else "")


def _for_people(done: Done, *, sampled: bool, drafts: bool = True) -> str:
    """Time to first token, prefill rate with new and cached tokens, decode rate, drafts, context used, and the seed."""
    stats = done.stats
    new = stats.prompt_tokens - stats.cached_tokens
    prompt = f"{new:,} new, {stats.cached_tokens:,} cached" if stats.cached_tokens else token_count(new)
    parts = [f"{wait(stats.time_to_first_token)} to first token", f"prefill {_rate(stats.prefill_rate)} ({prompt})"]
    if stats.decode_rate:
        parts.append(f"decode {_rate(stats.decode_rate)}")
    if stats.drafted_tokens and drafts:
        parts.append(f"accepted {stats.accepted_tokens:,} of {stats.drafted_tokens:,} drafted")
    parts.append(f"context {stats.context_used:,}/{stats.context:,}")
    if sampled:
        parts.append(f"seed {done.seed}")
    return " · ".join(parts)


def _for_few_columns(done: Done, *, sampled: bool, named: bool = True) -> str:
    """The same in the same order with fewer words, or hardly any; new and cached tokens as a sum."""
    stats = done.stats
    new = stats.prompt_tokens - stats.cached_tokens
    prompt = f"{new:,}+{stats.cached_tokens:,}" if stats.cached_tokens else f"{new:,}"
    prefill, decode = _number(stats.prefill_rate), _number(stats.decode_rate)
    read = f"prefill {prefill}/s ({prompt})" if named else f"{prompt} at {prefill}/s"
    parts = [wait(stats.time_to_first_token), read]
    if stats.decode_rate:
        parts.append(f"decode {decode}/s" if named else f"{decode} tok/s")
    parts.append(f"ctx {stats.context_used:,}/{stats.context:,}")
    if sampled:
        parts.append(f"seed {done.seed}")
    return " · ".join(parts)


def ending_notice(done: Done, max_tokens: int | None, *, chat: bool = False) -> str | None:
    """Why a reply is shorter than the model would have it; None where the model ended it.

    ``chat``: in a chat, where a reply can be gone on with.
    """
    if done.meets_constraint and done.finish_reason in ("length", "context"):
        limit = f"--max-tokens {max_tokens:,}" if done.finish_reason == "length" else "the context"
        return f"the reply was brought to an end to fit {limit}"
    go_on = "; /continue goes on" if chat else ""
    if done.finish_reason == "length":
        limit = f"--max-tokens {max_tokens:,}" if max_tokens is not None else "the token limit"
        return f"the reply was cut at {limit}{go_on}"
    if done.finish_reason == "context":
        remedy = "; /drop or /summarise makes room and /continue goes on" if chat else "; --ctx asks for a longer one"
        return f"the reply was cut: the context of {done.stats.context:,} tokens is full{remedy}"
    if done.finish_reason == "repetition":
        remedy = "/set repeat-penalty 1.1 and /retry may help" if chat else "--repeat-penalty 1.1 may help"
        return f"the reply went in circles and was ended; {remedy}{go_on or ', --loop-guard 0 lets it go on'}"
    return None


def _rate(tokens_per_second: float) -> str:
    return f"{_number(tokens_per_second)} tok/s"


def _number(rate: float) -> str:
    return f"{rate:,.{0 if rate >= 100 else 1}f}"
