"""Measure the CPU time per token of rendering a reply as Markdown, as a share of a core, early and late in the reply.

    python -m benchmarks.rendering [--kilobytes 100] [--rate 30] [--columns 80] [--rows 24]

Replies of several kinds stream into the view token by token. The view's clock advances by 1/rate seconds per token, so
that the number of frames is realistic without sleeping. The time is that of the process (time.process_time). The last
column shows growth: the cost of the last tenth of the tokens divided by that of the second tenth.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TextIO

from benchmarks.measurements import Conditions, Measurement, add_results_option, append
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.tail import TerminalSize
from qwchat.markdown.styles import Styling

TEXT = (
    "the model reads a prompt and writes an answer token by token while the cache of keys and values grows longer "
    "with every position so that attention has more to look at and memory bandwidth decides how fast it goes"
)
CODE = '''def total(values: list[float], start: float = 0.0) -> float:
    """Return the sum of `values`."""
    for value in values:
        start += value  # one after another
    return start
'''


class CountingStream:
    """Stream that drops what is written and counts it."""

    def __init__(self) -> None:
        self.writes = self.size = 0

    def write(self, text: str) -> int:
        """Count `text`."""
        self.writes += 1
        self.size += len(text)
        return len(text)

    def flush(self) -> None:
        """Do nothing."""


def sentence(chance: random.Random, words: int) -> str:
    """Return a sentence with some markup."""
    chosen = chance.choices(TEXT.split(), k=words)
    chosen[0] = f"**{chosen[0]}**"
    chosen[-1] = f"`{chosen[-1]}`"
    return " ".join(chosen) + ". "


def reply(kind: str, size: int) -> str:
    """Return a reply of about `size` bytes."""
    chance = random.Random(1)
    parts: list[str] = []
    length = 0
    while length < size:
        part = {
            "mixed": lambda: chance.choice(["# A heading\n\n", "\n", *_blocks(chance)]),
            "one paragraph": lambda: sentence(chance, 12),
            "one list": lambda: f"- {sentence(chance, 15)}\n",
            "one code block": lambda: CODE if parts else "```python\n",
            "tables": lambda: _table(chance),
            "one line of code": lambda: "x = [1, 2, 3]; " if parts else "```python\n",
            "Chinese": lambda: "中文回答需要正确地换行，**重点**内容也一样。" * 3 + chance.choice(["", "\n\n"]),
        }[kind]()
        parts.append(part)
        length += len(part.encode())
    return "".join(parts)


def _blocks(chance: random.Random) -> list[str]:
    paragraph = "".join(sentence(chance, 14) for _ in range(5)) + "\n\n"
    items = "".join(f"{number}. {sentence(chance, 12)}\n" for number in range(1, 5)) + "\n"
    return [paragraph, items, f"```python\n{CODE}```\n\n", _table(chance)]


def _table(chance: random.Random) -> str:
    rows = "".join(f"| {number} | {sentence(chance, 4)}| `x` |\n" for number in range(5))
    return f"| number | sentence | code |\n|---:|---|:-:|\n{rows}\n"


def tokens(text: str) -> Iterator[str]:
    """Yield pieces of about the size of a token: four bytes of English on average."""
    return iter(re.findall(r"\s*[^\W\s]{1,6}|\s+|[^\w\s]{1,3}|.", text, re.DOTALL))


def measure(text: str, rate: float, size: TerminalSize) -> tuple[list[float], int]:
    """Return the CPU seconds of each token, and the number of writes."""
    now = 0.0
    sink = CountingStream()
    stream: TextIO = sink  # type: ignore[assignment]
    styling = Styling(terminal=True, emphasis=True, colour=True)
    view = ReplyView(stream, styling, clock=lambda: now, size=lambda out: size)
    costs: list[float] = []
    for piece in tokens(text):
        now += 1 / rate
        before = time.process_time()
        view.write(piece)
        costs.append(time.process_time() - before)
    view.end()
    return costs, sink.writes


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kilobytes", type=int, default=100, help="length of each reply")
    parser.add_argument("--rate", type=float, default=30.0, help="tokens per second")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--rows", type=int, default=24)
    add_results_option(parser)
    arguments = parser.parse_args()
    conditions = replace(Conditions.of_this_run("rendering", None), simd=None)
    size = TerminalSize(arguments.columns, arguments.rows)
    print(f"{arguments.kilobytes} kB at {arguments.rate:g} tokens/s, {size.columns} x {size.rows}")
    print(f"{'reply':<18}{'tokens':>8}{'frames':>8}{'µs/token':>10}{'of a core':>11}{'longest':>10}{'last/first':>12}")
    measure(reply("mixed", 10_000), arguments.rate, size)  # warms up imports and caches
    for kind in ("mixed", "one paragraph", "one list", "one code block", "one line of code", "tables", "Chinese"):
        costs, frames = measure(reply(kind, arguments.kilobytes * 1000), arguments.rate, size)
        mean = sum(costs) / len(costs)
        tenth = len(costs) // 10
        growth = sum(costs[-tenth:]) / sum(costs[tenth : 2 * tenth])
        print(
            f"{kind:<18}{len(costs):>8,}{frames:>8,}{mean * 1e6:>10.0f}{mean * arguments.rate:>10.2%} "
            f"{max(costs) * 1e3:>7.1f} ms{growth:>12.2f}"
        )
        window, unit = f"{size.columns} x {size.rows}", "µs of CPU time per token"
        append(
            arguments.results,
            [Measurement(conditions, None, "qwchat", window, kind, len(costs), mean * 1e6, unit)],
        )


if __name__ == "__main__":
    main()
