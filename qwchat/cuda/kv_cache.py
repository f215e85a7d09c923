"""The KV cache of one conversation on the device."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.manifest import PTX_FOLDER
from qwchat.cuda.memory import Allocation, DeviceMemory
from qwchat.model import rope
from qwchat.model.gpu_memory import DECODE_ROWS, DeviceArray, cache_arrays, capacity_of


@dataclass(frozen=True)
class LayerCache:
    """Addresses of the keys and values of a layer, and of their scales (0 for the kind `f16`)."""

    keys: int
    key_scales: int
    values: int
    value_scales: int

    @property
    def parameters(self) -> dict[str, float]:
        """What the attention kernels take."""
        return asdict(self)


class CudaCache:
    """Keys and values of up to `context` positions. It implements `qwchat.model.decoder.Cache`.

    Each array is (num_kv_heads, capacity, head_dim), or head_dim / 32 for scales. Positions that were not written are
    zero. The memory is freed some time after the cache was deleted.

    Args:
        memory: where it is allocated.
        access: how the host reads and writes it.
        config: the model's shapes.
        context: positions.
        kind: `f16` or `q8`.
        layers: the model's layers whose keys and values are kept.
        number: distinguishes it from all other caches of a decoder, even deleted ones.

    Attributes:
        memory: where it is allocated.
        number: as given.

    Raises:
        GpuMemoryError: the device has too little free memory.
    """

    def __init__(
        self,
        memory: DeviceMemory,
        access: HostAccess,
        config: ModelConfig,
        context: int,
        kind: str,
        layers: range,
        number: int,
    ) -> None:
        self.config, self.kind, self.layers, self._access = config, kind, layers, access
        self.memory, self.number, self.capacity = memory, number, capacity_of(context)
        self._logits = np.zeros((0, config.vocab_size), np.float32)
        self._arrays = list(cache_arrays(config, context, kind, layers))
        allocation = memory.allocate(sum(array.allocated for array in self._arrays), "cache")
        memory.on_delete(self, partial(memory.free, allocation))
        self._allocation: Allocation = allocation
        self._addresses = allocation.parts([array.nbytes for array in self._arrays])
        self.clear()

    def layer(self, layer: int) -> LayerCache:
        """Return where the keys and values of a layer are."""
        found = {array.name: address for array, address in self._of_layer(layer)}
        names = (f"keys.{layer}", f"keys.{layer}.scales", f"values.{layer}", f"values.{layer}.scales")
        return LayerCache(*(found.get(name, 0) for name in names))

    def _of_layer(self, layer: int) -> Sequence[tuple[DeviceArray, int]]:
        count = len(self._arrays) // len(self.layers)
        first = self.layers.index(layer) * count
        return list(zip(self._arrays, self._addresses, strict=True))[first : first + count]

    def logits_rows(self, count: int) -> NDArray[np.float32]:
        """Return at least `count` rows (rows, vocab) f32, which the next pass overwrites."""
        if count > len(self._logits):
            self._logits = np.zeros((max(count, DECODE_ROWS), self.config.vocab_size), np.float32)
        return self._logits

    @cached_property
    def layout_id(self) -> bytes:
        """Hash (32 bytes) of everything except the weights that keys and values depend on.

        That includes all compiled kernels, since another version may round differently.
        """
        digest = hashlib.sha256(repr((self.config, self.kind, self.layers)).encode())
        sources = [Path(rope.__file__).with_name(name) for name in ("rope.py", "key_offsets.py")]
        for file in sources + sorted((PTX_FOLDER / "manifest").glob("*.json")):
            digest.update(file.read_bytes())
        return digest.digest()

    def _pieces(self, layer: int, positions: int) -> Iterator[tuple[int, int]]:
        """Yield address and bytes of the first `positions` positions of each array and head."""
        for array, address in self._of_layer(layer):
            heads, capacity, _ = array.shape
            line = array.nbytes // heads
            for head in range(heads):
                yield address + head * line, line // capacity * min(positions, capacity)

    def segment_bytes(self, layer: int, positions: int) -> list[int]:
        """Return the length of each piece of `segments`."""
        return [size for _, size in self._pieces(layer, positions)]

    def segments(self, layer: int, positions: int) -> Iterator[NDArray[np.uint8]]:
        """Yield copies of the keys and values of a layer; see `Cache.segments`.

        The order is: keys by head, their scales, values by head, their scales.
        """
        for address, size in self._pieces(layer, positions):
            yield self._access.read(address, size)

    @contextmanager
    def writable_segments(self, layer: int, positions: int) -> Iterator[Iterator[NDArray[np.uint8]]]:
        """Return a context that yields the keys and values of a layer to overwrite; see `Cache.writable_segments`."""
        pieces = list(self._pieces(layer, positions))
        staged = [np.empty(size, np.uint8) for _, size in pieces]
        yield iter(staged)
        for (address, _), array in zip(pieces, staged, strict=True):
            self._access.write(address, array)

    def clear(self) -> None:
        """Zero all keys and values."""
        self._access.zero(self._allocation.address, self._allocation.size)
