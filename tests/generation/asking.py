"""Ask an engine with the fields of a `Request` and the arguments of the call side by side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Any

from qwchat.events import EngineEvent
from qwchat.generation.engine import Engine
from qwchat.request import Request, SamplingSettings

_FIELDS = frozenset(field.name for field in fields(Request))


def generate(
    engine: Engine, ids: Sequence[int], settings: SamplingSettings, *, seed: int, usable_vocab: int, **options: Any
) -> Iterator[EngineEvent]:
    """Call `Engine.generate`; without speculation where `options` do not say so."""
    asked = {"speculate": False} | {name: value for name, value in options.items() if name in _FIELDS}
    call = {name: value for name, value in options.items() if name not in _FIELDS}
    return engine.generate(ids, Request(settings, seed, **asked), usable_vocab=usable_vocab, **call)
