"""Second moments by plain NumPy in float64, from the reference decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quant.calibration import input_of
from quant.sources import open_source
from qwchat.model.reference import Array, Reference


def reference_inputs(
    checkpoint: Path, pieces: Sequence[NDArray[np.int64]], replaced: Mapping[str, NDArray[np.float32]] | None = None
) -> dict[str, Array]:
    """Return the input of every matrix by the name of the input, (tokens, K) f64; some tensors may be replaced."""
    found: dict[str, list[Array]] = {}
    with open_source(checkpoint) as source:
        tensors = {name: np.asarray(source.read(name), np.float64) for name in source.tensors}
        config = source.config
    tensors |= {name: values.astype(np.float64) for name, values in (replaced or {}).items()}

    def record(x: Array, name: str) -> Array:
        key = input_of("model.embed_tokens.weight" if name == "lm_head.weight" and tied else name, config)
        assert key is not None
        parts.setdefault(key, x)
        return x

    tied = config.tie_word_embeddings
    for piece in pieces:
        parts: dict[str, Array] = {}
        Reference(config, tensors.__getitem__, record).logits(piece.tolist())
        for key, x in parts.items():
            found.setdefault(key, []).append(x)
    return {key: np.concatenate(values) for key, values in found.items()}


def moments_of(inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Return the mean of x xᵀ of every input, (K, K) f64."""
    return {name: x.T @ x / len(x) for name, x in inputs.items()}


def distance(found: NDArray[np.float32], wanted: Array) -> float:
    """Return the largest difference of two second-moment matrices, relative to the sizes of row and column."""
    scale = np.sqrt(np.outer(wanted.diagonal(), wanted.diagonal())) + 1e-30
    return float(np.abs((found - wanted) / scale).max())
