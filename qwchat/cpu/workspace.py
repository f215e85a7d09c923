"""Work space of a pass over one chunk of tokens, and the STATE record that points to them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from qwchat.cpu.kernels.records import (
    ATTENTION_ITEM_TOKENS,
    ATTENTION_ROWS,
    ATTENTION_SCRATCH_BYTES,
    BLOCK,
    NORM_PER_THREAD_TOKENS,
    PACKED_BLOCK_BYTES,
    PARTIAL_HEADER_BYTES,
    SPLIT_ATTENTION_TOKENS,
    SPLIT_POSITIONS,
    TERMS,
    TOKEN_LANES,
    matmul_scratch_bytes,
)
from qwchat.cpu.layer_records import STATE
from qwchat.limits import DEFAULT_ACTIVATIONS
from qwchat.model.rope import rope_tables

CHUNK = 128  # tokens per compiled call


def aligned_buffer(rows: int, columns: int, dtype: type = np.float32) -> NDArray[Any]:
    """Return zeros (rows, columns rounded up to 16), starting on a cache line."""
    width = -(-columns // 16) * 16
    itemsize = np.dtype(dtype).itemsize
    raw = np.zeros(rows * width * itemsize + 64, np.uint8)
    offset = -raw.ctypes.data % 64
    return raw[offset : offset + rows * width * itemsize].view(dtype).reshape(rows, width)


class LogitsBuffer:
    """Rows for logits, as many as have been needed at once so far."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._rows = aligned_buffer(1, vocab_size)

    def rows(self, count: int) -> NDArray[np.float32]:
        """Return at least `count` rows (rows, vocab rounded up to 16) f32, with the values of the last pass."""
        if count > len(self._rows):
            # Draft tokens need a varying small number of rows: allocate enough for all of them at once.
            self._rows = aligned_buffer(max(count, SPLIT_ATTENTION_TOKENS), self._vocab_size)
        return self._rows


class Workspace:
    """Buffers for passes of up to CHUNK tokens, and `state`, the STATE record without the model's weights.

    Args:
        config: the model's shapes.
        capacity: positions of each cache.
        threads: members of the team.
        has_layers: whether the pass runs layers, which need buffers for attention and MLP.
        activations: bits of the activations of integer formats, 8 or 16.
    """

    def __init__(
        self, config: ModelConfig, capacity: int, threads: int, has_layers: bool, activations: int = DEFAULT_ACTIVATIONS
    ) -> None:
        self._config, self._has_layers, self._terms = config, has_layers, TERMS[activations]
        self._memory: list[NDArray[Any]] = []
        self.states = np.zeros(1, STATE)
        self.state = state = self.states[0]
        state["epsilon"], state["query_scale"] = config.rms_norm_eps, 1 / math.sqrt(config.head_dim)
        self.ids = np.zeros(CHUNK, np.int64)
        state["token_ids"] = self.ids.ctypes.data
        self.residual = self._buffer(CHUNK, config.hidden_size)
        state["residual"] = self.residual.ctypes.data
        self.normed = self._activations(state["normed"], config.hidden_size)
        # Packed, up to TOKEN_LANES rows, the most that these tokens have, take PACKED_BLOCK_BYTES per block.
        own = config.hidden_size * NORM_PER_THREAD_TOKENS * 4 + config.hidden_size // BLOCK * PACKED_BLOCK_BYTES
        thread_normed = self._buffer(threads, own // 4)
        state["thread_normed"], state["thread_normed_bytes"] = thread_normed.ctypes.data, thread_normed.strides[0]
        scratch = matmul_scratch_bytes(CHUNK * self._terms)
        if has_layers:
            self._fill_angle_tables(capacity)
            self._fill_layer_space(capacity)
            stride = self._partial_stride()
            group = config.num_heads // config.num_kv_heads
            scratch = max(scratch, ATTENTION_SCRATCH_BYTES + (ATTENTION_ROWS + ATTENTION_ITEM_TOKENS * group) * stride)
        state["scratch"] = self._buffer(threads, scratch // 4).ctypes.data
        state["scratch_bytes"] = -(-scratch // 64) * 64

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers and tables."""
        tables = self._cos.nbytes + self._sin.nbytes if self._has_layers else 0
        return sum(memory.nbytes for memory in self._memory) + tables

    def _buffer(self, rows: int, columns: int, dtype: type = np.float32) -> NDArray[Any]:
        self._memory.append(aligned_buffer(rows, columns, dtype))
        return self._memory[-1]

    def _activations(self, record: Any, columns: int) -> NDArray[np.float32]:
        """Fill `record` with new buffers; return the one in f32."""
        record["columns"], record["terms"] = columns, self._terms
        x = self._buffer(CHUNK, columns)
        record["x"] = x.ctypes.data
        groups = -(-CHUNK * self._terms // TOKEN_LANES)
        record["packed"] = self._buffer(groups, columns // BLOCK * PACKED_BLOCK_BYTES, np.int8).ctypes.data
        return x[:, :columns]

    def _partial_stride(self) -> int:
        return PARTIAL_HEADER_BYTES + self._config.head_dim * 4

    def _fill_layer_space(self, capacity: int) -> None:
        config, state = self._config, self.state
        queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.attended = self._activations(state["attended"], queries)
        self.activated = self._activations(state["activated"], config.intermediate_size)
        for name, columns in (("query", queries), ("key", keys), ("value", keys)):
            state[name] = self._buffer(CHUNK, columns).ctypes.data
        group, head_dim = config.num_heads // config.num_kv_heads, config.head_dim
        record = state["queries"]
        # Kernels read whole blocks of rows, and the last block may reach beyond the chunk.
        record["row_capacity"] = CHUNK * group + ATTENTION_ROWS
        rows = config.num_kv_heads * int(record["row_capacity"])
        record["x"] = self._buffer(rows, head_dim).ctypes.data
        record["x8"] = self._buffer(1, rows * head_dim, np.int8).ctypes.data
        record["scales"] = self._buffer(1, rows * head_dim // 32).ctypes.data
        record["zero_corrections"] = self._buffer(1, rows * head_dim // 32, np.int32).ctypes.data
        partials = SPLIT_ATTENTION_TOKENS * capacity // SPLIT_POSITIONS * config.num_heads
        state["partials"] = self._buffer(partials, self._partial_stride() // 4).ctypes.data

    def _fill_angle_tables(self, capacity: int) -> None:
        half = self._config.head_dim // 2
        self._cos, self._sin = np.empty((2, capacity, half), np.float32)
        self._has_angles = [False] * (capacity // SPLIT_POSITIONS)
        self.state["cos"], self.state["sin"] = self._cos.ctypes.data, self._sin.ctypes.data

    def fill_angles(self, start: int, stop: int) -> None:
        """Compute the RoPE tables for the positions `start` to `stop - 1`, if they are new.

        Keys from a snapshot are stored rotated, so their positions need no tables.
        """
        for split in range(start // SPLIT_POSITIONS, -(-stop // SPLIT_POSITIONS)):
            if not self._has_angles[split]:
                first, end = split * SPLIT_POSITIONS, (split + 1) * SPLIT_POSITIONS
                self._cos[first:end], self._sin[first:end] = rope_tables(self._config, first, end)
                self._has_angles[split] = True


def workspace_bytes(config: ModelConfig, capacity: int, threads: int, activations: int = DEFAULT_ACTIVATIONS) -> int:
    """Return the bytes of a work space for all layers, with logits for draft tokens. Its pages are not touched."""
    logits = SPLIT_ATTENTION_TOKENS * config.vocab_size * 4
    return Workspace(config, capacity, threads, has_layers=True, activations=activations).nbytes + logits
