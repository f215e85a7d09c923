"""Float pass over calibration windows that shows the inputs of matrix products, layer by layer.

It is `qwchat.model.reference` in f32, with the tokens of all windows in one array, so that one product serves them all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.model_config import ModelConfig
from quant.sources import QuantisedRows, Source, open_source
from qwchat.model.reference import Reference, rotated
from qwchat.model.rope import rope_tables

Floats = NDArray[np.float32]
Tensors = dict[str, Floats]
Watch = Callable[[Floats, str], None]
"""Called with the input (tokens, in) of each product and the name of its matrix."""


def read_tensors(source: Source) -> Tensors:
    """Return the values of all tensors of a source, dequantised, in f32."""
    tensors = {}
    for name in source.tensors:
        rows = source.read(name)
        tensors[name] = rows.dequantise() if isinstance(rows, QuantisedRows) else rows
    return tensors


def read_checkpoint(folder: Path) -> tuple[ModelConfig, Tensors]:
    """Return the config and all values of a checkpoint or of a GGUF file."""
    with open_source(folder) as source:
        return source.config, read_tensors(source)


class FloatPass(Reference):
    """Evaluates windows of token ids at once, each from position 0.

    Args:
        config: the model's.
        tensors: values by name; they may be replaced between calls.
        windows: token ids of each window.
    """

    def __init__(self, config: ModelConfig, tensors: Mapping[str, Floats], windows: Sequence[Sequence[int]]) -> None:
        super().__init__(config, tensors.__getitem__, self._show)
        ends = np.cumsum([0, *map(len, windows)]).tolist()
        self._bounds = list(itertools.pairwise(ends))
        self.ids = [token for window in windows for token in window]
        self._watch: Watch | None = None

    def watched_layer(self, x: Floats, layer: int, watch: Watch) -> Floats:
        """Return the residual (tokens, hidden) after a layer, and show the inputs of its products to `watch`."""
        self._watch = watch
        try:
            return self.layer(x, layer)
        finally:
            self._watch = None

    def attention(self, x: Floats, prefix: str) -> Floats:
        """Return the attention of each window on its own, through o_proj, (tokens, hidden)."""
        config, scale = self.config, 1 / math.sqrt(self.config.head_dim)
        queries = self.heads(x, prefix, "q", config.num_heads)
        keys, values = (self.heads(x, prefix, name, config.num_kv_heads) for name in "kv")
        mixed = np.empty((len(x), config.num_heads, config.head_dim), np.float32)
        for start, stop in self._bounds:
            cos, sin = (table[:, None] for table in rope_tables(config, 0, stop - start))
            q, k = (rotated(each[start:stop], cos, sin).transpose(1, 0, 2) for each in (queries, keys))  # (A, T, D)
            v = values[start:stop].transpose(1, 0, 2)
            k, v = (np.repeat(each, config.num_heads // config.num_kv_heads, axis=0) for each in (k, v))
            scores = q @ k.transpose(0, 2, 1) * scale  # (A, T, T)
            scores[:, ~np.tri(stop - start, dtype=bool)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            mixed[start:stop] = (weights @ v).transpose(1, 0, 2)
        return self.product(mixed.reshape(len(x), -1), f"{prefix}.o_proj")

    def swiglu(self, x: Floats, prefix: str) -> Floats:
        """Return the output of the MLP, (tokens, hidden); exp(-z) may overflow to infinity, and silu(z) is then 0."""
        with np.errstate(over="ignore"):
            return super().swiglu(x, prefix)

    def _show(self, x: Floats, name: str) -> Floats:
        if self._watch is not None:
            self._watch(x, name)
        return x
