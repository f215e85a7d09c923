"""Replies as objects of the protocol: whole ones, and the pieces of a stream."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from qwchat.events import Done, FinishReason, TextStep, TokenLogprob
from qwchat.server.reply_fields import ReplySpec

TokenBytes = Callable[[int], bytes]

_FINISH_REASONS: dict[FinishReason, str] = {
    "stop": "stop",
    "length": "length",
    "context": "length",
    "repetition": "length",
    "cancelled": "length",  # By a time limit, or because the server ends.
}


@dataclass(frozen=True)
class ReplyHead:
    """What all pieces of a reply repeat.

    Attributes:
        model_name: name of the model.
        fingerprint: of its weights.
        spec: the request.
        token_bytes: returns the bytes of a token.
    """

    model_name: str
    fingerprint: str
    spec: ReplySpec
    token_bytes: TokenBytes
    number: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))

    def fields(self, prefix: str, kind: str) -> dict[str, Any]:
        """Return the fields at the beginning of each object."""
        return {
            "id": f"{prefix}-{self.number}",
            "object": kind,
            "created": self.created,
            "model": self.model_name,
            "system_fingerprint": self.fingerprint,
        }


class ReplyFormat(Protocol):
    """Form of a reply."""

    head: ReplyHead

    def opening(self) -> dict[str, Any] | None:
        """Return the first piece of a stream, if it has one without text."""

    def piece(self, step: TextStep) -> dict[str, Any] | None:
        """Return the piece of a stream for some text; None if there is nothing to send."""

    def closing(self, done: Done, queue_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the last pieces of a stream."""

    def whole(self, steps: Sequence[TextStep], done: Done, queue_seconds: float) -> dict[str, Any]:
        """Return a whole reply."""


class ChatFormat:
    """Form of a chat reply; implements `ReplyFormat`. Thoughts are `reasoning_content`."""

    def __init__(self, head: ReplyHead) -> None:
        self.head = head

    def opening(self) -> dict[str, Any]:
        """Return the piece with the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def piece(self, step: TextStep) -> dict[str, Any] | None:
        """Return the piece for some text."""
        logprobs = self._logprobs([step])
        if not step.text and not (logprobs and logprobs["content"]):
            return None
        return self._chunk({"reasoning_content" if step.reasoning else "content": step.text}, logprobs)

    def closing(self, done: Done, queue_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the piece with the reason of the end, and the one with the number of tokens if requested."""
        end = self._chunk({}, reason=_FINISH_REASONS[done.finish_reason])
        yield {**end, "seed": done.seed, "timings": timings(done, queue_seconds)}
        if self.head.spec.usage_chunk:
            yield {**self._fields("chat.completion.chunk"), "choices": [], "usage": usage(done)}

    def whole(self, steps: Sequence[TextStep], done: Done, queue_seconds: float) -> dict[str, Any]:
        """Return a whole reply."""
        thought = "".join(step.text for step in steps if step.reasoning)
        message: dict[str, Any] = {
            "role": "assistant",
            "content": "".join(step.text for step in steps if not step.reasoning),
            "refusal": None,
            **({"reasoning_content": thought} if done.raw_text is not None else {}),
        }
        choice = {
            "index": 0,
            "message": message,
            "logprobs": self._logprobs(steps),
            "finish_reason": _FINISH_REASONS[done.finish_reason],
        }
        return {**self._fields("chat.completion"), "choices": [choice], **_figures(done, queue_seconds)}

    def _fields(self, kind: str) -> dict[str, Any]:
        return self.head.fields("chatcmpl", kind)

    def _chunk(
        self, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return {**self._fields("chat.completion.chunk"), "choices": [choice]}

    def _logprobs(self, steps: Sequence[TextStep]) -> dict[str, Any] | None:
        """Return the log-probabilities of the answer's tokens; None if they were not requested."""
        top = self.head.spec.top_logprobs
        if top is None:
            return None
        found = [step.logprob for step in steps if step.logprob is not None and not step.reasoning]
        entries = [
            {**self._logprob(each), "top_logprobs": [self._logprob(likely) for likely in each.top[:top]]}
            for each in found
        ]
        return {"content": entries, "refusal": None}

    def _logprob(self, logprob: TokenLogprob) -> dict[str, Any]:
        assert logprob.token_id is not None, "the engine names each token"
        return {
            "token": logprob.text,
            "logprob": logprob.logprob,
            "bytes": list(self.head.token_bytes(logprob.token_id)),
        }


class CompletionFormat:
    """Form of a completion; implements `ReplyFormat`."""

    def __init__(self, head: ReplyHead) -> None:
        self.head = head
        self._offset = 0  # Characters of the text so far.

    def opening(self) -> dict[str, Any] | None:
        """Return None: the first piece has text."""
        return None

    def piece(self, step: TextStep) -> dict[str, Any] | None:
        """Return the piece for some text."""
        logprobs = self._logprobs([step])
        self._offset += len(step.text)
        if not step.text and not (logprobs and logprobs["tokens"]):
            return None
        return self._object(step.text, logprobs, None)

    def closing(self, done: Done, queue_seconds: float) -> Iterator[dict[str, Any]]:
        """Yield the piece with the reason of the end, and the one with the number of tokens if requested."""
        end = self._object("", None, _FINISH_REASONS[done.finish_reason])
        yield {**end, "seed": done.seed, "timings": timings(done, queue_seconds)}
        if self.head.spec.usage_chunk:
            yield {**self.head.fields("cmpl", "text_completion"), "choices": [], "usage": usage(done)}

    def whole(self, steps: Sequence[TextStep], done: Done, queue_seconds: float) -> dict[str, Any]:
        """Return a whole completion."""
        text = "".join(step.text for step in steps)
        whole = self._object(text, self._logprobs(steps), _FINISH_REASONS[done.finish_reason])
        return {**whole, **_figures(done, queue_seconds)}

    def _object(self, text: str, logprobs: dict[str, Any] | None, reason: str | None) -> dict[str, Any]:
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}
        return {**self.head.fields("cmpl", "text_completion"), "choices": [choice]}

    def _logprobs(self, steps: Sequence[TextStep]) -> dict[str, Any] | None:
        """Return the log-probabilities of tokens as parallel arrays; None if they were not requested."""
        top, offset = self.head.spec.top_logprobs, self._offset
        if top is None:
            return None
        arrays: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for step in steps:
            if step.logprob is not None:
                arrays["tokens"].append(step.logprob.text)
                arrays["token_logprobs"].append(step.logprob.logprob)
                arrays["top_logprobs"].append({likely.text: likely.logprob for likely in step.logprob.top[:top]})
                arrays["text_offset"].append(offset)
            offset += len(step.text)
        return {**arrays}


def usage(done: Done) -> dict[str, Any]:
    """Return the number of tokens."""
    stats = done.stats
    return {
        "prompt_tokens": stats.prompt_tokens,
        "completion_tokens": stats.generated_tokens,
        "total_tokens": stats.prompt_tokens + stats.generated_tokens,
        "prompt_tokens_details": {"cached_tokens": stats.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": stats.reasoning_tokens},
    }


def timings(done: Done, queue_seconds: float) -> dict[str, Any]:
    """Return times in milliseconds with the names of llama-server, and the time in the queue."""
    stats = done.stats
    return {
        "queue_ms": round(1000 * queue_seconds, 3),
        "cache_n": stats.cached_tokens,
        "prompt_n": stats.evaluated_tokens,
        "prompt_ms": round(1000 * stats.prefill_seconds, 3),
        "prompt_per_second": round(stats.prefill_rate, 3),
        "predicted_n": stats.generated_tokens,
        "predicted_ms": round(1000 * stats.decode_seconds, 3),
        "predicted_per_second": round(stats.decode_rate, 3),
        "draft_n": stats.drafted_tokens,
        "draft_n_accepted": stats.accepted_tokens,
    }


def _figures(done: Done, queue_seconds: float) -> dict[str, Any]:
    return {"usage": usage(done), "seed": done.seed, "timings": timings(done, queue_seconds)}
