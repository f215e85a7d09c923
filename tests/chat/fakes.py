"""A scripted model that stands in for weights, with the interface that the chat and the command line use."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from quant.wording import Argument, ArgumentMessage
from qwchat.chat.session import PendingReply, Session
from qwchat.errors import DamagedModelError, NonFiniteLogitsError, PromptTooLongError, SnapshotError, UsageError
from qwchat.events import Done, FinishReason, Prefilled, Stats, TextEvent, TextStep, TokenLogprob
from qwchat.messages import Message
from qwchat.placement import Placement
from qwchat.reasoning import ReasoningSplitter, ReasoningStart
from qwchat.request import Prompt, PromptOptions, ReplyConstraint, Request, SamplingParams

CHUNK = 128


@dataclass(frozen=True)
class FakePrompt(Prompt):
    """A prompt that keeps its messages."""

    messages: tuple[Message, ...] = ()
    continuing: bool = False
    keep_thoughts: bool = False


def replying(session: Session, reply: PendingReply, cancel: Callable[[], bool] | None = None) -> Iterator[TextEvent]:
    """Stream a pending reply."""
    return session.stream(reply, session.prompt(reply), cancel)


POLL_SECONDS = 0.02  # How often the engine polls within a chunk.


class FakeIntegrity:
    """An integrity check that takes `seconds` and finds the tensor `damaged`, if given."""

    total_bytes = 1000

    def __init__(self, path: Path, damaged: str | None, seconds: float) -> None:
        self._path, self._damaged, self._seconds = path, damaged, seconds
        self._started = math.inf

    def start(self) -> None:
        self._started = min(self._started, time.monotonic())

    @property
    def done_bytes(self) -> int:
        return min(1000, round(1000 * (time.monotonic() - self._started) / (self._seconds or 1)))

    def _over(self) -> bool:
        return time.monotonic() - self._started >= self._seconds

    def raise_if_damaged(self) -> None:
        if self._damaged is not None and self._over():
            raise DamagedModelError(self._path, {f"tensor {self._damaged}": "its bytes differ"})

    def wait(self, seconds: float | None = None) -> bool:
        self.start()
        end = self._started + self._seconds
        time.sleep(max(0.0, min(end - time.monotonic(), end if seconds is None else seconds)))
        return self._over()


@dataclass
class FakeModel:
    """Answers with `replies` in turn, or repeats the last message. A token is a word with the white space after it.

    The file `token_file` is created when a token begins. `token_seconds` and `chunk_seconds` slow the model down;
    within a chunk it polls for a stop, as the engine does. `failing` raises NonFiniteLogitsError after three tokens.
    The tensor `damaged` is found to be damaged `checking_seconds` after the first message. `asked` records every call,
    `rendered` the messages of every rendered prompt. `reasoning` says how a reply begins; only with "optional" can
    the prompt ask for one without a thought.
    """

    replies: Sequence[str] = ()
    token_seconds: float = 0.0
    token_file: str = ""
    chunk_seconds: float = 0.0
    context_size: int = 2048
    failing: bool = False
    damaged: str | None = None
    checking_seconds: float = 0.0
    reevaluation_seconds: float = 0.0
    reasoning: ReasoningStart = "none"
    name: str = "tiny-q8"
    fingerprint: str = "0123abcd"
    temperature: float = 0.0
    asked: list[list[Message]] = field(default_factory=list)
    rendered: list[list[Message]] = field(default_factory=list)
    calls: list[dict[str, object]] = field(default_factory=list)
    closed: bool = False
    placement: Placement = field(default_factory=lambda: Placement(6))

    def __post_init__(self) -> None:
        self.defaults = SamplingParams(temperature=self.temperature)
        self.engine = SimpleNamespace(context=self.context_size, threads=2, kv="f32", activations=8)
        manifest = {"tensors": {}, "source": {"name": "tiny"}, "settings": {"preset": "q8", "group_size": 32}}
        path = Path(f"/models/{self.name}")
        self.folder = SimpleNamespace(
            fingerprint=self.fingerprint, preset="q4", bits_per_weight=4.875, manifest=manifest, path=path
        )
        self.integrity = FakeIntegrity(path, self.damaged, self.checking_seconds)
        self._words: list[str] = []
        self._cached = 0
        self.cache_bytes = 1000
        self._begun = 0

    @property
    def host(self) -> str:
        return ""

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *unused: object) -> None:
        self.close()

    def close(self) -> None:
        self.closed = True

    @property
    def context(self) -> int:
        return self.context_size

    @property
    def longest_context(self) -> int:
        return 4096

    @property
    def thinks(self) -> bool:
        return self.reasoning != "none"

    @property
    def threads(self) -> int:
        return int(self.engine.threads)

    @property
    def kv(self) -> str:
        return str(self.engine.kv)

    @property
    def activations(self) -> int:
        return int(self.engine.activations)

    @property
    def device(self) -> str:
        return "cpu"

    @property
    def gpu_layers(self) -> int:
        return 0

    def reconfigure(
        self,
        *,
        threads: int | None = None,
        context: int | None = None,
        kv: str = "auto",
        activations: int = 8,
        device: str | None = None,
        gpu_layers: int | None = None,
    ) -> int:
        """Change settings, and drop the cached tokens for other keys and values.

        More than 4,096 positions are refused.
        """
        if context is not None and context > 4096:
            limits = "from 1 to 4,096 tokens, the maximum of this model"
            raise UsageError(ArgumentMessage(Argument("context"), f" must be {limits}, not {context:,}"))
        self.context_size = context or 2048
        chosen = ("q8" if self.context_size > 3000 else "f32") if kv == "auto" else kv
        kept = self._cached if (chosen, activations) == (self.kv, self.activations) else 0
        lost, self._cached = self._cached - kept, kept
        self.engine = SimpleNamespace(
            context=self.context_size, threads=threads or 2, kv=chosen, activations=activations
        )
        return lost

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> FakePrompt:
        self.rendered.append([dict(message) for message in messages])
        options = options or PromptOptions()
        start = self.reasoning if options.thinking or self.reasoning == "open" else "none"
        sent = list(messages) if continuing or options.keep_thoughts else [*map(_without_thought, messages)]
        return FakePrompt(
            range(self.count(sent)),
            reasoning=start,
            messages=tuple(messages),
            continuing=continuing,
            keep_thoughts=options.keep_thoughts,
        )

    def count(self, messages: Sequence[Message]) -> int:
        return sum(len(_words(message["content"])) + 1 for message in messages)

    def cached(self, prompt: Prompt) -> int:
        messages = getattr(prompt, "messages", ())
        cut = next((place for place, each in enumerate(messages) if _without_thought(each) != each), None)
        if cut is None or getattr(prompt, "keep_thoughts", False) or getattr(prompt, "continuing", False):
            return min(self._cached, prompt.tokens)
        return min(self._cached, self.count(messages[:cut]))

    def reevaluated_tokens(self, prompt: Prompt) -> int:
        return prompt.tokens

    def encode(self, text: str) -> list[int]:
        return list(range(len(_words(text))))

    @property
    def cached_ids(self) -> NDArray[np.int64]:
        return np.arange(self._cached)

    def save_cache(self, path: Path) -> int:
        return path.write_text(str(self._cached))

    def restore_cache(self, path: Path) -> int:
        text = path.read_text()
        if not text.isdecimal():
            raise SnapshotError(f"{path} is damaged")
        self._cached = int(text)
        return self._cached

    def decode(self, token_ids: Sequence[int]) -> str:
        if any(token_id >= len(self._words) for token_id in token_ids):
            raise UsageError("a token id is outside this model's vocabulary")
        return "".join(self._words[token_id] for token_id in token_ids)

    def stream(self, prompt: Prompt, request: Request, cancel: Callable[[], bool] | None = None) -> Iterator[TextEvent]:
        assert isinstance(prompt, FakePrompt)
        messages, continuing = prompt.messages, prompt.continuing
        self.asked.append([dict(message) for message in messages])
        self.integrity.start()
        self.calls.append({field.name: getattr(request, field.name) for field in fields(request)})
        self.calls[-1] |= {"continuing": continuing}
        tokens = prompt.tokens
        if tokens >= self.context_size:
            raise PromptTooLongError(tokens, self.context_size, self.longest_context)
        before: list[int] = []
        if continuing:
            before = list(messages[-1].get("token_ids") or self._encode(messages[-1]["content"]))
        else:
            self._begun += 1
        stopped = cancel or (lambda: False)
        events = self._events(prompt, before, tokens, request, stopped)
        constraint, logprobs = request.constraint, request.logprobs
        return events if constraint is None and not logprobs else self._judged(events, constraint, logprobs)

    def _judged(
        self, events: Iterator[TextEvent], constraint: ReplyConstraint | None, logprobs: int
    ) -> Iterator[TextEvent]:
        """Yield the events with the verdict of the constraint, and give every token a probability of 1 in e."""
        said: list[TokenLogprob] = []
        for event in events:
            if isinstance(event, TextStep) and logprobs and event.token_id is not None:
                top = tuple(TokenLogprob(rank, f"t{rank}", -1.0 - rank) for rank in range(logprobs))
                said.append(TokenLogprob(event.token_id, event.text, -1.0, top))
                yield replace(event, logprob=said[-1])
            elif isinstance(event, Done):
                meets = None if constraint is None else constraint.fits(event.text)
                yield replace(event, meets_constraint=meets, logprobs=tuple(said))
            else:
                yield event

    def _events(
        self,
        prompt: FakePrompt,
        before: list[int],
        total: int,
        request: Request,
        cancel: Callable[[], bool],
    ) -> Iterator[TextEvent]:
        max_tokens, stop = request.max_tokens, request.stop
        cached, raw, ids = min(self.cached(prompt), total - 1), self.decode(before), []
        splitter = ReasoningSplitter(prompt.reasoning)
        thought, said, thought_tokens = "", "", 0
        for number, token_id in enumerate(before, 1):
            was_open = splitter.undecided or splitter.thinking
            more_thought, answer = splitter.push(self._words[token_id])
            thought, said = thought + more_thought, said + answer
            thought_tokens = number if was_open and splitter.has_thought else thought_tokens
        reason: FinishReason = "stop"
        read = cached
        for done in [*range(cached + CHUNK, total, CHUNK), total]:
            end = time.monotonic() + self.chunk_seconds
            while not cancel() and time.monotonic() < end:
                time.sleep(min(POLL_SECONDS, self.chunk_seconds))
            if cancel():
                reason = "cancelled"
                break
            read = done
            self.integrity.raise_if_damaged()
            yield Prefilled(done, total, cached)
        words, budget_closes = _within_budget(self._reply(prompt.messages), prompt.reasoning, request.think_budget)
        for word in words[len(before) :] if reason == "stop" else ():
            if cancel():
                reason = "cancelled"
                break
            if (max_tokens is not None and len(ids) == max_tokens) or total + len(ids) == self.context_size:
                reason = "length" if len(ids) == max_tokens else "context"
                break
            if self.failing and len(ids) == 3:
                raise NonFiniteLogitsError("the model produced NaN at token 4: convert it again")
            if self.token_file:
                Path(self.token_file).touch()
            time.sleep(self.token_seconds)
            self.integrity.raise_if_damaged()
            ids += self._encode(word)
            was_open = splitter.undecided or splitter.thinking
            more_thought, answer = splitter.push(word)
            if was_open and splitter.has_thought:
                thought, raw, thought_tokens = thought + more_thought, raw + word, len(before) + len(ids)
                yield TextStep(more_thought, ids[-1], reasoning=True)
                continue
            cut = min((answer.index(text) for text in stop if text in answer), default=len(answer))
            said, raw = said + answer[:cut], raw + word[: len(word) - len(answer) + cut]
            yield TextStep(answer[:cut], ids[-1])
            if cut < len(answer):
                break
        self._cached = read + len(ids)
        first = 0.125 if read == total else None
        stats = Stats(total, cached, len(ids), 0.5, 0.25, first, self.context_size, 0, 0, total - read, thought_tokens)
        raw_text = raw if splitter.has_thought else None
        closed = budget_closes and not splitter.thinking
        yield Done(
            reason, stats, said, (*before, *ids), request.seed, None, (), thought, raw_text, reasoning_truncated=closed
        )

    def _encode(self, text: str) -> list[int]:
        words = _words(text)
        self._words += words
        return list(range(len(self._words) - len(words), len(self._words)))

    def _reply(self, messages: Sequence[Message]) -> list[str]:
        number = self._begun - 1
        return _words(self.replies[number % len(self.replies)] if self.replies else f"echo: {messages[-1]['content']}")


def _within_budget(words: list[str], start: ReasoningStart, budget: int) -> tuple[list[str], bool]:
    """Return the words of a reply whose thought the budget closes, and whether it does."""
    end = next((place for place, word in enumerate(words) if "</think>" in word), len(words))
    first = int(start == "optional")
    if start == "none" or not budget or end - first <= budget:
        return words, False
    return [*words[: first + budget], "\n</think>\n\n", *words[end + 1 :]], True


def _without_thought(message: Message) -> Message:
    return {**message, "content": message["content"].rpartition("</think>")[2]}


def _words(text: str) -> list[str]:
    return re.findall(r"\s*\S+\s*?(?=\s|$)|\s+", text)
