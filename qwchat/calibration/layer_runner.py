"""Run one layer on the tokens of a calibration and show the inputs of its matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qwchat.calibration.streamed_model import open_layer_decoder
from qwchat.calibration.windows_of_text import WINDOW, Ids
from qwchat.cpu.kernels.records import NORM_PER_THREAD_TOKENS
from qwchat.errors import NonFiniteLogitsError
from qwchat.model.tensor_source import TensorSource

Rows = NDArray[np.float32]
Inputs = Mapping[str, Rows]
"""Inputs of a layer's matrices by kind: "input", "attention", "mlp" and "activation", (tokens, K) f32 each."""
Observer = Callable[[slice, Inputs], None]
"""Called for each chunk of tokens with their place among all tokens, and their inputs until the next chunk."""

_LEAST_CHUNK = NORM_PER_THREAD_TOKENS + 1
"""A chunk of fewer tokens leaves no normed rows: it is filled up with tokens that no other token sees."""


class LayerRunner:
    """Runs layers of a model on all tokens of a calibration.

    Args:
        pieces: token ids of each piece, at most WINDOW; each is evaluated from position 0.
        threads: threads that compute.
    """

    def __init__(self, pieces: Sequence[Ids], threads: int) -> None:
        ends = np.cumsum([len(piece) for piece in pieces]).tolist()
        self._pieces = list(pairwise([0, *ends]))
        self._threads = threads
        self.tokens: int = ends[-1]

    def run(
        self,
        tensors: TensorSource,
        layer: int,
        residual: Rows,
        observe: Observer | None = None,
        *,
        keep: bool = False,
    ) -> Iterator[int]:
        """Run layer number `layer`.

        Args:
            tensors: the model; `down_proj` must be stored in floats if its input is observed.
            layer: number of the layer.
            residual: the residual stream of all tokens, (tokens, hidden) f32, overwritten unless `keep` is set.
            observe: called for each chunk of tokens.
            keep: leave `residual` as it is.

        Yields:
            How many tokens are done.

        Raises:
            NonFiniteLogitsError: the layer computed NaN or infinity.
        """
        weight = tensors.tensor(f"model.layers.{layer}.input_layernorm.weight").parts["values"]
        epsilon = tensors.config.rms_norm_eps
        with open_layer_decoder(tensors, layer, context=WINDOW + _LEAST_CHUNK, threads=self._threads) as opened:
            decoder, cache = opened
            spare = np.zeros((_LEAST_CHUNK, residual.shape[1]), np.float32)
            for first, last in self._pieces:
                for start in range(first, last, decoder.chunk):
                    stop = min(start + decoder.chunk, last)
                    rows = residual[start:stop].copy() if keep else residual[start:stop]
                    before = rms_norm(rows, weight, epsilon) if observe else rows
                    padded = rows if len(rows) >= _LEAST_CHUNK else spare
                    padded[: len(rows)] = rows
                    decoder.run_layers(padded, 1, 2, start - first, cache)
                    rows[:] = padded[: len(rows)]
                    if not np.isfinite(rows).all():
                        raise NonFiniteLogitsError(f"layer {layer} computed NaN or infinity: check the model's weights")
                    if observe:
                        inputs = decoder.layer_inputs(len(rows))
                        named = {"attention": inputs.attention, "mlp": inputs.mlp, "activation": inputs.activation}
                        observe(slice(start, stop), {"input": before, **named})
                    yield stop


def rms_norm(x: Rows, weight: Rows, epsilon: float) -> Rows:
    """Return RMSNorm of each row of `x` (tokens, hidden) f32, as `qwchat.model.reference` defines it."""
    mean_square = np.square(x, dtype=np.float64).mean(axis=1, keepdims=True)
    scale = 1 / np.sqrt(mean_square + epsilon)
    normed: Rows = (x * scale * weight).astype(np.float32)
    return normed
