"""Turn the chunks of a server into the text, the figures and the final event of a reply."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from qwchat.events import Done, FinishReason, Stats, TextStep, TokenLogprob
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from qwchat.remote.chunks import Chunk, Timings, Usage
from qwchat.request import Request
from qwchat.text.reply_text import ReplyText

_HIGH_SURROGATE = re.compile("[\ud800-\udbff]\\Z")


class PairJoiner:
    """Joiner of surrogate pairs that JSON escapes, and pieces, divide. A lone surrogate becomes U+FFFD."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> str:
        """Return the next piece of valid text."""
        whole = self._held + text
        cut = len(whole) - 1 if _HIGH_SURROGATE.search(whole) else len(whole)
        self._held = whole[cut:]
        return _joined(whole[:cut])

    def flush(self) -> str:
        """Return the rest, at the end of the text."""
        held, self._held = self._held, ""
        return _joined(held)


def _joined(text: str) -> str:
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


class RemoteReplyBuilder:
    """Builder of a reply.

    A thought may be text of its own (`reasoning_content`) or stand between tags in the answer. Stop strings are looked
    for here as well, for servers that ignore them.

    Args:
        request: how the reply is generated.
        prompt_tokens: length of the prompt, if the server does not report it.
        context: size of the context window.
        continued: the reply so far, as the model wrote it.
        clock: returns seconds.
    """

    def __init__(
        self, request: Request, prompt_tokens: int, context: int, continued: str, clock: Callable[[], float]
    ) -> None:
        self._request, self._prompt_tokens, self._context, self._clock = request, prompt_tokens, context, clock
        self._text, self._joiner = ReplyText("optional", request.stop), PairJoiner()
        self._splitter = self._text.splitter
        self._pieces = self._reasoning_pieces = 0
        self._logprobs: list[TokenLogprob] = []
        self._usage, self._timings, self._reason = Usage(), Timings(), ""
        self._started = self._clock()
        self._first: float | None = None
        self._last = self._started
        self._in_reasoning = False
        if continued:
            self._text.push(continued)
            self._reasoning_pieces = int(self._splitter.has_thought)

    @property
    def stopped(self) -> bool:
        """Whether a stop string ended the reply."""
        return self._text.stopped

    def push(self, chunk: Chunk) -> Iterator[TextStep]:
        """Add a chunk and yield the text that is final."""
        self._usage = chunk.usage if chunk.usage != Usage() else self._usage
        self._timings = chunk.timings if chunk.timings != Timings() else self._timings
        self._reason = chunk.finish_reason or self._reason
        text = self._with_tags(chunk)
        if not text:
            return
        self._last = self._clock()
        self._first = self._last if self._first is None else self._first
        logprobs = chunk.logprobs if self._request.logprobs else ()
        self._logprobs += logprobs
        yield from self._steps(self._joiner.push(text), max(1, len(logprobs)), logprobs)

    def flush(self) -> Iterator[TextStep]:
        """Yield the text that is held back, at the end of the reply."""
        if self.stopped:
            return
        thought, answer = self._text.push(self._joiner.flush(), ends=True)
        if thought:
            yield TextStep(thought, None, reasoning=True)
        if answer:
            yield TextStep(answer, None)

    def done(self, *, cancelled: bool) -> Done:
        """Return the final event of the reply."""
        text = self._text.answer
        constraint = self._request.constraint
        stats = self._stats()
        reason = "stop" if self.stopped else "cancelled" if cancelled else self._finish_reason(stats)
        meets = None if constraint is None else constraint.fits(text)
        logprobs, seed = tuple(self._logprobs), self._request.seed
        return Done(reason, stats, text, (), seed, meets, logprobs, self._text.thought, self._text.raw)

    def _with_tags(self, chunk: Chunk) -> str:
        """Return the text of a chunk as the model wrote it, with the tags of a thought."""
        text = ""
        if chunk.reasoning and self._splitter.undecided and not self._in_reasoning:
            text, self._in_reasoning = f"{OPENING_TAG}\n{chunk.reasoning}", True
        elif chunk.reasoning and (self._in_reasoning or self._splitter.thinking):
            text, self._in_reasoning = chunk.reasoning, True
        if chunk.text:  # A thought after the answer has begun is left out.
            if self._in_reasoning:
                text, self._in_reasoning = f"{text}\n{CLOSING_TAG}\n\n", False
            text += chunk.text
        return text

    def _steps(self, text: str, tokens: int, logprobs: tuple[TokenLogprob, ...]) -> Iterator[TextStep]:
        was_open = self._splitter.undecided or self._splitter.thinking
        thought, answer = self._text.push(text)
        in_thought = was_open and self._splitter.has_thought
        self._pieces += tokens
        self._reasoning_pieces += tokens if in_thought else 0
        logprob = logprobs[0] if len(logprobs) == 1 else None
        if in_thought and not answer:
            yield TextStep(thought, None, logprob, reasoning=True, unnamed_tokens=tokens)
            return
        if thought:
            yield TextStep(thought, None, reasoning=True)
        yield TextStep(answer, None, logprob, unnamed_tokens=tokens)

    def _finish_reason(self, stats: Stats) -> FinishReason:
        if self._reason != "length":
            return "stop"
        limit = self._request.max_tokens
        return "length" if limit is not None and stats.generated_tokens >= limit else "context"

    def _stats(self) -> Stats:
        usage, timings = self._usage, self._timings
        prompt = self._prompt_tokens if usage.prompt is None else usage.prompt
        generated = self._pieces if usage.generated is None else usage.generated
        reasoning = 0
        if self._splitter.has_thought:
            reasoning = max(1, self._reasoning_pieces if usage.reasoning is None else usage.reasoning)
        unknown = ["drafted", "accepted"]
        unknown += ["cached", "read"] if usage.cached is None else []
        unknown += ["prefill_seconds", "prefill_tokens_per_second"] if timings.prefill is None else []
        return Stats(
            prompt,
            usage.cached or 0,
            generated,
            timings.prefill or 0.0,
            timings.decode or self._last - (self._last if self._first is None else self._first),
            None if self._first is None else self._first - self._started,
            self._context,
            unread_tokens=prompt if self._first is None and usage.prompt is None else 0,
            reasoning_tokens=reasoning,
            estimated=usage.prompt is None or usage.generated is None,
            unknown=tuple(unknown),
        )
