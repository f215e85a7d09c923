"""The KV cache: f32 keys and values in the order in which the attention kernel reads them."""

from __future__ import annotations

from typing import Any

import numpy as np

from quant.config import ModelConfig
from qwchat.kernels.records import SPLIT
from qwchat.model.memory import require_memory


class KVCache:
    """Room for ``context`` positions, K (layer, kv_head, position/16, head_dim, 16), V (layer, kv_head, head_dim/16,
    position, 16); see :mod:`qwchat.kernels.attention`.  Pages are taken from the system when they are first written.

    Raises NotEnoughMemoryError.
    """

    def __init__(self, config: ModelConfig, context: int) -> None:
        self.capacity = -(-context // SPLIT) * SPLIT
        elements = config.num_layers * config.num_kv_heads * self.capacity * config.head_dim
        require_memory(8 * elements, f"the KV cache of {context:,} tokens", "ask for a smaller context with --ctx")
        self._keys, self._values = np.zeros(elements, np.float32), np.zeros(elements, np.float32)
        self._layer_bytes = elements // config.num_layers * 4
        self._config = config

    def fill(self, layer: int, record: Any) -> None:
        """Writes the addresses of one layer's cache into a CACHE record."""
        record["num_heads"], record["num_kv_heads"] = self._config.num_heads, self._config.num_kv_heads
        record["head_dim"], record["capacity"] = self._config.head_dim, self.capacity
        record["k"] = self._keys.ctypes.data + layer * self._layer_bytes
        record["v"] = self._values.ctypes.data + layer * self._layer_bytes

    def clear(self) -> None:
        """Zeroes everything: a non-finite value must not outlive the run that wrote it."""
        self._keys.fill(0)
        self._values.fill(0)
