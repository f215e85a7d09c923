"""Conversations on a decoder, and replies in them; fields of `Request` and arguments of the call are given together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from typing import Any

from qwchat.cpu.build import build_decoder
from qwchat.events import EngineEvent
from qwchat.generation.cached_context import CachedContext
from qwchat.generation.engine import Engine
from qwchat.model.tensor_source import TensorSource
from qwchat.request import Request, SamplingParams

_FIELDS = frozenset(field.name for field in fields(Request))


class Conversation:
    """An engine and one context of its decoder."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.cached = engine, CachedContext(engine.decoder)


@contextmanager
def open_conversation(folder: TensorSource, **options: Any) -> Iterator[Conversation]:
    """Open a conversation on a new decoder on the CPU; `options` are those of `build_decoder`."""
    with closing(build_decoder(folder, **options)) as decoder:
        yield Conversation(Engine(decoder))


@contextmanager
def open_context(folder: TensorSource, **options: Any) -> Iterator[CachedContext]:
    """Open a context of a new decoder on the CPU; `options` are those of `build_decoder`."""
    with closing(build_decoder(folder, **options)) as decoder:
        yield CachedContext(decoder)


def generate(
    conversation: Conversation,
    ids: Sequence[int],
    settings: SamplingParams,
    *,
    seed: int,
    usable_vocab: int,
    **options: Any,
) -> Iterator[EngineEvent]:
    """Call `Engine.generate`, without speculation unless `options` ask for it."""
    asked = {"speculate": False} | {name: value for name, value in options.items() if name in _FIELDS}
    call = {name: value for name, value in options.items() if name not in _FIELDS}
    return conversation.engine.generate(
        conversation.cached, ids, Request(settings, seed, **asked), usable_vocab=usable_vocab, **call
    )
