"""Numbers and short texts in the form that people read."""

from __future__ import annotations

from qwchat.limits import DEFAULT_ACTIVATIONS


def token_count(count: int) -> str:
    """Return a token count as text: `1 token`, `1,234 tokens`."""
    return "1 token" if count == 1 else f"{count:,} tokens"


def activations_note(bits: int | None) -> str:
    """Return the bits of activations as the continuation of a list, `, 16-bit activations`; "" for the default."""
    return "" if bits in (None, DEFAULT_ACTIVATIONS) else f", {bits}-bit activations"


def evaluation_note(tokens: int, again: int, context: int) -> str:
    """Return what a change costs, as the end of a sentence; "" if it costs nothing.

    Args:
        tokens: length of the conversation in tokens.
        again: how many of them have to be evaluated again.
        context: size of the context window.
    """
    if tokens > context:
        return f"; the conversation has {token_count(tokens)} and does not fit into {context:,}"
    return f"; {token_count(again)} will be evaluated again" if again > 0 else ""


def duration(seconds: float) -> str:
    """Return a duration as text: `4 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short_duration(seconds: float) -> str:
    """Return a duration with fractions of a second: `3 ms`, `0.12 s`, `12.3 s`, `3 min 20 s`."""
    if seconds < 0.1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.2f} s"
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def format_ranges(numbers: list[int]) -> str:
    """Return whole numbers as ranges: `0–3, 7, 24–27`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in runs)


def one_line(text: str, limit: int = 60) -> str:
    """Return `text` on one line, cut to `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
