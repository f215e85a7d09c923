"""The unquantised model, run layer by layer: the weights of one layer are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor
from quant.model_config import ModelConfig
from qwchat.cpu.decoder import CpuDecoder
from qwchat.model.decoder import Cache
from qwchat.model.tensor_source import TensorSource

Residual = NDArray[np.float32]
"""Residual stream of one text, (tokens, hidden) f32."""
Layer = Callable[[Residual], None]
"""Runs a layer on a residual stream in place, from position 0 on."""
Head = Callable[[Residual], NDArray[np.float32]]
"""(residual stream of at most a chunk of tokens) -> logits (tokens, vocab) f32, until the next call."""


@contextmanager
def open_layer_decoder(
    tensors: TensorSource, layer: int, *, context: int, threads: int
) -> Iterator[tuple[CpuDecoder, Cache]]:
    """Load one layer, which the decoder knows as layer number 1. The value is the decoder and a cache of it.

    Args:
        tensors: the model's tensors; only those of the layer are read.
        layer: number of the layer.
        context: most tokens of a text.
        threads: threads that compute.

    Raises:
        ModelError: the kernels cannot run the layer.
        NotEnoughMemoryError: there is not enough memory for the work space.
    """
    # As the second of three layers, the layer brings neither the embedding nor the head.
    decoder = CpuDecoder(_OneLayer(tensors, layer), context=context, threads=threads, kv="f32", layers=range(1, 2))
    try:
        yield decoder, decoder.make_cache()
    finally:
        decoder.close()


@contextmanager
def open_layer(
    tensors: TensorSource, layer: int, *, context: int, threads: int
) -> Iterator[Callable[[Residual], None]]:
    """Load one layer. The value runs it on a residual stream in place, from position 0 on.

    Arguments and errors are those of `open_layer_decoder`.
    """
    with open_layer_decoder(tensors, layer, context=context, threads=threads) as (decoder, cache):

        def run(residual: Residual) -> None:
            for start in range(0, len(residual), decoder.chunk):
                decoder.run_layers(residual[start : start + decoder.chunk], 1, 2, start, cache)

        yield run


@contextmanager
def open_head(tensors: TensorSource, *, threads: int) -> Iterator[Head]:
    """Load the head of a model. Raises what `open_layer` raises."""
    end = tensors.config.num_layers
    decoder = CpuDecoder(tensors, context=CpuDecoder.chunk, threads=threads, kv="f32", layers=range(end, end))
    try:

        def run(residual: Residual) -> NDArray[np.float32]:
            return decoder.head(residual, 0)

        yield run
    finally:
        decoder.close()


class _OneLayer:
    """One layer of a model, as the second of three."""

    def __init__(self, tensors: TensorSource, layer: int) -> None:
        self._tensors, self._prefix = tensors, f"model.layers.{layer}."
        self.config: ModelConfig = replace(tensors.config, num_layers=3)

    @property
    def path(self) -> Path:
        return self._tensors.path

    def tensor(self, name: str) -> PackedTensor:
        return self._tensors.tensor(name.replace("model.layers.1.", self._prefix, 1))
