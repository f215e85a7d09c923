"""Buffers of a pass on the device, and the pinned memory through which the host fills and reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats.q4 import CODEBOOK
from quant.model_config import ModelConfig
from qwchat.cuda.device import OpenGpu
from qwchat.cuda.host_access import HostAccess
from qwchat.cuda.launch import HostCopy
from qwchat.cuda.memory import DeviceMemory, PinnedMemory
from qwchat.model.gpu_memory import CHUNK, DECODE_ROWS, DeviceArray
from qwchat.model.rope import rope_tables

_LEVEL_OFFSET = 128  # added to the levels of q4, so that they are not negative
_ANGLE_BLOCK = 1024  # positions whose angles are computed at once


class CudaWorkspace:
    """Buffers by name, as `qwchat.model.gpu_memory` lists them.

    Args:
        gpu: the device.
        memory: where they are allocated.
        access: how the host writes the tables.
        config: the model's shapes.
        arrays: the buffers; `step` and `ids` come first.
    """

    def __init__(
        self,
        gpu: OpenGpu,
        memory: DeviceMemory,
        access: HostAccess,
        config: ModelConfig,
        arrays: Sequence[DeviceArray],
    ) -> None:
        self._gpu, self._access, self._config = gpu, access, config
        allocation = memory.allocate(sum(array.allocated for array in arrays), "workspace")
        addresses = allocation.parts([array.nbytes for array in arrays])
        self._arrays = {array.name: array for array in arrays}
        self._addresses = {array.name: address for array, address in zip(arrays, addresses, strict=True)}
        access.zero(allocation.address, allocation.size)
        access.write(self["q4_levels"], (CODEBOOK.astype(np.int16) + _LEVEL_OFFSET).astype(np.uint8))
        self._angles = 0  # positions whose angles are on the device
        self._ids_offset = self["ids"] - self["step"]
        self._inputs = self._pin(self._ids_offset + 4 * CHUNK)

    def _pin(self, size: int) -> PinnedMemory:
        pinned = PinnedMemory(self._gpu.driver, size)
        self._gpu.on_close(pinned.free)
        return pinned

    def __getitem__(self, name: str) -> int:
        """Return the address of a buffer."""
        return self._addresses[name]

    def row_bytes(self, name: str) -> int:
        """Return the bytes of a row (the last axis) of a buffer."""
        array = self._arrays[name]
        return array.shape[-1] * array.dtype.itemsize

    @property
    def step(self) -> NDArray[np.int32]:
        """The host's copy of `step`, (8,) i32: tokens, position of the first token, logits_from."""
        return self._inputs.bytes[:32].view(np.int32)

    @property
    def ids(self) -> NDArray[np.int32]:
        """The host's copy of `ids`, (CHUNK,) i32."""
        return self._inputs.bytes[self._ids_offset :].view(np.int32)

    def input_copy(self, tokens: int) -> HostCopy:
        """Return the copy of `step` and of `tokens` ids to the device."""
        return HostCopy(self["step"], self._inputs.address, self._ids_offset + 4 * tokens, to_device=True)

    @cached_property
    def _residual(self) -> PinnedMemory:
        return self._pin(CHUNK * self.row_bytes("residual"))

    @property
    def residual(self) -> NDArray[np.float32]:
        """The host's copy of `residual`, (CHUNK, hidden) f32."""
        return self._residual.bytes.view(np.float32).reshape(CHUNK, -1)

    def residual_copy(self, tokens: int, *, to_device: bool) -> HostCopy:
        """Return the copy of `tokens` rows of the residual stream."""
        size = tokens * self.row_bytes("residual")
        return HostCopy(self["residual"], self._residual.address, size, to_device=to_device)

    @cached_property
    def _logits(self) -> PinnedMemory:
        return self._pin(DECODE_ROWS * self.row_bytes("logits"))

    @property
    def logits(self) -> NDArray[np.float32]:
        """The host's copy of `logits`, (DECODE_ROWS, vocab) f32."""
        return self._logits.bytes.view(np.float32).reshape(DECODE_ROWS, -1)[:, : self._config.vocab_size]

    def logits_copy(self, rows: int) -> HostCopy:
        """Return the copy of `rows` rows of logits to the host."""
        return HostCopy(self["logits"], self._logits.address, rows * self.row_bytes("logits"), to_device=False)

    @cached_property
    def _candidates(self) -> PinnedMemory:
        return self._pin(self._candidates_bytes)

    @property
    def _candidates_bytes(self) -> int:
        """Bytes from `candidate_values` to the end of `summaries`, which lie one after the other."""
        return self["summaries"] + self._arrays["summaries"].nbytes - self["candidate_values"]

    @property
    def candidates(self) -> tuple[NDArray[np.float32], NDArray[np.int32], NDArray[np.float32]]:
        """The host's copies of `candidate_values` and `candidate_ids`, (rows, 64), and of `summaries`, (rows, 4)."""

        def part(name: str, dtype: type) -> NDArray[Any]:
            array, start = self._arrays[name], self[name] - self["candidate_values"]
            return self._candidates.bytes[start : start + array.nbytes].view(dtype).reshape(array.shape)

        return (
            part("candidate_values", np.float32),
            part("candidate_ids", np.int32),
            part("summaries", np.float32),
        )

    def candidates_copy(self) -> HostCopy:
        """Return the copy of what `candidates` found to the host."""
        address = self["candidate_values"]
        return HostCopy(address, self._candidates.address, self._candidates_bytes, to_device=False)

    def fill_angles(self, stop: int) -> None:
        """Let the RoPE tables hold the positions below `stop`."""
        capacity = self._arrays["cos"].shape[0]
        while self._angles < stop:
            end = min(self._angles + _ANGLE_BLOCK, capacity)
            tables = rope_tables(self._config, self._angles, end)
            for name, table in zip(("cos", "sin"), tables, strict=True):
                self._access.write(self[name] + self._angles * self.row_bytes(name), table)
            self._angles = end
