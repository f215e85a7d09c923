"""Counters of a server, and their page in the text format of Prometheus."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from qwchat.events import Done

_STATM = Path("/proc/self/statm")


@dataclass
class Metrics:
    """Counters and gauges of a server. Threads may share them.

    Attributes:
        queue_length: requests in the queue.
        running: 1 while the model works on a reply, otherwise 0.
        kv_caches: number of KV caches.
        kv_cache_tokens: positions that are cached, in all caches together.
        kv_cache_bytes: bytes of the cached keys and values.
    """

    queue_length: int = 0
    running: int = 0
    kv_caches: int = 0
    kv_cache_tokens: int = 0
    kv_cache_bytes: int = 0
    _requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    _replies: Counter[str] = field(default_factory=Counter)
    _totals: Counter[str] = field(default_factory=Counter)
    _seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("prefill", "decode", "queue"), 0.0))
    _rates: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("prefill", "decode"), 0.0))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count_request(self, endpoint: str, status: int) -> None:
        """Count an answered request."""
        with self._lock:
            self._requests[endpoint, status] += 1

    def count_reply(self, done: Done, queue_seconds: float) -> None:
        """Count a reply with its tokens and times."""
        stats = done.stats
        with self._lock:
            self._replies[done.finish_reason] += 1
            self._totals["prompt"] += stats.prompt_tokens - stats.unread_tokens
            self._totals["cached"] += stats.cached_tokens
            self._totals["generated"] += stats.generated_tokens
            self._seconds["prefill"] += stats.prefill_seconds
            self._seconds["decode"] += stats.decode_seconds
            self._seconds["queue"] += queue_seconds
            for name, rate in (("prefill", stats.prefill_rate), ("decode", stats.decode_rate)):
                if rate:
                    self._rates[name] = rate

    def count_failure(self) -> None:
        """Count a reply that an error ended."""
        with self._lock:
            self._replies["error"] += 1

    def page(self) -> str:
        """Return all of them, one per line."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Answered requests")
        for (endpoint, status), count in sorted(self._requests.items()):
            yield f'qwchat_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}'
        yield from _head("replies_total", "counter", "Replies by why they ended")
        for reason, count in sorted(self._replies.items()):
            yield f'qwchat_replies_total{{finish_reason="{reason}"}} {count}'
        for kind, text in (
            ("prompt", "Prompt tokens, cached ones included"),
            ("cached", "Prompt tokens that were in a KV cache"),
            ("generated", "Generated tokens"),
        ):
            yield from _single(f"{kind}_tokens_total", "counter", text, self._totals[kind])
        yield from _single("prefill_seconds_total", "counter", "Time of prefill", self._seconds["prefill"])
        yield from _single("decode_seconds_total", "counter", "Time of decoding", self._seconds["decode"])
        yield from _head("queue_seconds", "summary", "Time in the queue")
        yield f"qwchat_queue_seconds_sum {self._seconds['queue']:.6f}"
        yield f"qwchat_queue_seconds_count {sum(self._replies.values()) - self._replies['error']}"
        for name, rate in self._rates.items():
            yield from _single(f"{name}_tokens_per_second", "gauge", f"Speed of the latest {name}", rate)
        yield from _single("queue_length", "gauge", "Requests in the queue", self.queue_length)
        yield from _single("running", "gauge", "Replies that are being generated", self.running)
        yield from _single("kv_caches", "gauge", "KV caches", self.kv_caches)
        yield from _single("kv_cache_tokens", "gauge", "Positions in all KV caches", self.kv_cache_tokens)
        yield from _single("kv_cache_bytes", "gauge", "Bytes of these positions", self.kv_cache_bytes)
        if (resident := resident_bytes()) is not None:
            yield from _single("resident_memory_bytes", "gauge", "Memory of the process", resident)


def resident_bytes() -> int | None:
    """Return the memory of this process in bytes, mapped files included; None if the system does not say."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP qwchat_{name} {text}"
    yield f"# TYPE qwchat_{name} {kind}"


def _single(name: str, kind: str, text: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"qwchat_{name} {value:.15g}"
