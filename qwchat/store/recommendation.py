"""Which model of the catalogue to take on a machine, or on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from quant.presets import DEFAULT_PRESET
from qwchat.limits import DEFAULT_CONTEXT
from qwchat.store.cards import Card
from qwchat.store.catalogue import CatalogueEntry, entries
from qwchat.store.gpu_estimate import GpuEstimate
from qwchat.store.memory_estimate import estimate, planned_tensors

SHARE = 2 / 3
"""Share of the memory that a recommended model takes; the rest is for the system and other programs."""
FLUENT = 5
"""Tokens per second that are about as fast as people read."""
_GENERAL = "qwen2.5:"


@dataclass(frozen=True)
class Recommendation:
    """A model of the catalogue with a context window of 4,096 tokens.

    Attributes:
        name: its name.
        preset: formats of its weights.
        needed: bytes of memory.
        tokens_per_second: the most that memory bandwidth allows; None if that is unknown.
    """

    name: str
    preset: str
    needed: int
    tokens_per_second: float | None

    @property
    def fluent(self) -> bool:
        """Whether replies may come as fast as people read; True if the speed is unknown."""
        return self.tokens_per_second is None or self.tokens_per_second >= FLUENT


def recommend(fitting: list[Recommendation]) -> Recommendation | None:
    """Return the largest fluent model of those that fit, or the smallest if none is fluent."""
    return next((each for each in reversed(fitting) if each.fluent), fitting[0] if fitting else None)


def fitting_machine(
    memory: int, bandwidth: float | None = None, preset: str = DEFAULT_PRESET, share: float = SHARE
) -> list[Recommendation]:
    """Return the general models that fit a machine, the smallest first.

    Args:
        memory: bytes of the machine's memory.
        bandwidth: bytes per second that its threads read; None if unknown.
        preset: formats of the weights.
        share: part of the memory that a model may take.
    """
    found = []
    for entry in _general():
        cpu = estimate(entry.config, planned_tensors(entry.config, preset), DEFAULT_CONTEXT)
        if cpu.total <= share * memory:
            speed = None if bandwidth is None else bandwidth / cpu.bytes_per_token
            found.append(Recommendation(entry.name, preset, cpu.total, speed))
    return sorted(found, key=lambda each: each.needed)


def fitting_card(card: Card, preset: str = DEFAULT_PRESET) -> list[Recommendation]:
    """Return the general models that a card holds as a whole, the smallest first."""
    found = []
    for entry in _general():
        tensors = planned_tensors(entry.config, preset)
        gpu = GpuEstimate(entry.config, tensors, estimate(entry.config, tensors, DEFAULT_CONTEXT))
        if gpu.memory.total <= card.memory:
            found.append(
                Recommendation(entry.name, preset, gpu.memory.total, gpu.offload(card, None).tokens_per_second)
            )
    return sorted(found, key=lambda each: each.needed)


def _general() -> Iterator[CatalogueEntry]:
    return (entry for entry in entries() if entry.name.startswith(_GENERAL))
