"""What a GPU holds of a model, and the speed that its memory bandwidth allows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from quant.model_config import ModelConfig
from qwchat.model.gpu_memory import GpuMemory, PartSizes, Tensors, choose_kv_kind
from qwchat.store.cards import Card
from qwchat.store.memory_estimate import MemoryEstimate


@dataclass(frozen=True)
class Offload:
    """What a card holds of a model.

    Attributes:
        card: the card.
        layers: layers on the card; the CPU runs the others.
        whole: whether the CPU runs nothing.
        tokens_per_second: of a reply at the end of the context window, at most; None if a bandwidth is unknown.
    """

    card: Card
    layers: int
    whole: bool
    tokens_per_second: float | None


class GpuEstimate:
    """Memory of one model at one preset with a full context window on a GPU.

    Args:
        config: sizes of the model.
        tensors: how its tensors are stored.
        host: the same on the CPU.
        kv: `f32`, `q8`, or `auto` for what a chat would choose.
    """

    def __init__(self, config: ModelConfig, tensors: Tensors, host: MemoryEstimate, kv: str = "auto") -> None:
        self.kv = choose_kv_kind(kv, config, host.context)
        self._layers, self._host = config.num_layers, host
        self._sizes = PartSizes(config, tensors, host.context, self.kv)

    @property
    def memory(self) -> GpuMemory:
        """Memory of the whole model."""
        return self._sizes.whole

    @property
    def bytes_per_token(self) -> int:
        """Bytes that the card reads for each token of a reply at the end of the context window."""
        return self._device_bytes(self._layers)

    def offload(self, card: Card, host_bandwidth: float | None) -> Offload:
        """Return what a card holds. `host_bandwidth`: bytes per second that the CPU reads; None if unknown."""
        part = self._sizes.largest(card.memory)
        count = len(part.layers)
        return Offload(card, count, part == self.memory.part, self._speed(count, card.bandwidth, host_bandwidth))

    def smallest(self, cards: Iterable[Card]) -> Card | None:
        """Return the first of `cards`, which are ordered by memory, that holds the whole model."""
        return next((card for card in cards if self.memory.total <= card.memory), None)

    def _speed(self, count: int, bandwidth: float | None, host_bandwidth: float | None) -> float | None:
        """Return tokens per second with `count` layers on the card; None if that needs an unknown bandwidth."""
        if count == 0 or bandwidth is None:
            return None
        seconds = self._device_bytes(count) / bandwidth
        if count < self._layers:
            if host_bandwidth is None:
                return None
            seconds += self._host_bytes(self._layers - count) / host_bandwidth
        return 1 / seconds

    def _device_bytes(self, count: int) -> int:
        """Return what the card reads per token for the head and the last `count` layers."""
        weights = self._sizes.layer_weights[self._layers - count :]
        return self._sizes.head_weights + sum(weights) + self.memory.cache * count // self._layers

    def _host_bytes(self, count: int) -> int:
        """Return what the CPU reads per token for the first `count` layers."""
        return sum(self._sizes.layer_weights[:count]) + self._host.cache * count // self._layers
