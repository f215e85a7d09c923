"""GPTQ in NumPy: symmetric codes of 4 bits in groups of columns, each rounding error compensated by later columns.

Sources: Frantar et al. 2022, algorithm 1; the grid is that of the published Qwen2 files: no activation order, damping
0.01, groups of 128, a scale for each group from the compensated weights when the group begins, zero point 8.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.rivals.float_pass import FloatPass, Floats, Tensors
from quant.model_config import ModelConfig

GROUP_SIZE = 128
DAMPING = 0.01
ZERO = 8
LARGEST = 15


@dataclass(frozen=True, eq=False)
class Codes:
    """Matrix of 4-bit codes: value = scale * (code - zero).

    Attributes:
        codes: (N, K) u8.
        scales: (N, groups) f16.
        zeros: (N, groups) u8.
        group_size: columns per group; the last one may have fewer.
    """

    codes: NDArray[np.uint8]
    scales: NDArray[np.float16]
    zeros: NDArray[np.uint8]
    group_size: int

    def values(self) -> Floats:
        """Return the values, (N, K) f32."""
        groups = np.arange(self.codes.shape[1]) // self.group_size
        offsets = self.codes.astype(np.float32) - self.zeros.astype(np.float32)[:, groups]
        return offsets * self.scales.astype(np.float32)[:, groups]


def moments(x: Floats) -> NDArray[np.float64]:
    """Return 2/n times the sum of x x^T over the tokens of `x` (n, K), (K, K)."""
    return (x.T @ x).astype(np.float64) * (2 / len(x))


def group_scales(values: NDArray[np.float64]) -> NDArray[np.float16]:
    """Return the symmetric scale of each row of a group (N, columns): its range is 15 steps wide."""
    largest = np.abs(values).max(1)
    return (np.where(largest > 0, largest, 1) * (2 / LARGEST)).astype(np.float16)


def inverse_factor(hessian: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the upper triangular U with U^T U = H^-1, (K, K)."""
    lower = np.linalg.cholesky(np.linalg.inv(hessian))
    return np.ascontiguousarray(lower.T)


def encode(values: Floats, hessian: NDArray[np.float64], group_size: int = GROUP_SIZE) -> Codes:
    """Quantise a matrix by GPTQ.

    Args:
        values: the matrix, (N, K).
        hessian: second moments of its input, (K, K), without damping.
        group_size: columns per scale, also the columns that are compensated at once.
    """
    rows, columns = values.shape
    left, hessian = values.astype(np.float64), hessian.copy()
    diagonal = np.einsum("ii->i", hessian)  # a view
    dead = diagonal == 0
    diagonal[dead], left[:, dead] = 1, 0
    diagonal += DAMPING * diagonal.mean()
    factor = inverse_factor(hessian)
    codes, scales = np.empty((rows, columns), np.uint8), []
    for start in range(0, columns, group_size):
        stop = min(start + group_size, columns)
        scales.append(group_scales(left[:, start:stop]))
        step = scales[-1].astype(np.float64)
        errors = np.empty((rows, stop - start))
        for column in range(start, stop):
            code = np.clip(np.rint(left[:, column] / step) + ZERO, 0, LARGEST)
            codes[:, column] = code
            error = (left[:, column] - step * (code - ZERO)) / factor[column, column]
            left[:, column:stop] -= np.outer(error, factor[column, column:stop])
            errors[:, column - start] = error
        left[:, stop:] -= errors @ factor[start:stop, stop:]
    zeros = np.full((rows, len(scales)), ZERO, np.uint8)
    return Codes(codes, np.stack(scales, 1), zeros, group_size)


def round_to_nearest(values: Floats, group_size: int = GROUP_SIZE) -> Codes:
    """Quantise a matrix on the same grid without compensation."""
    return encode(values, np.eye(values.shape[1]), group_size)


class _InputSeen(Exception):
    """The input that a pass was made for has been computed."""


INPUTS: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""Matrices of a layer that share an input, in the order of the pass."""


def input_of(each: FloatPass, x: Floats, layer: int, module: str) -> Floats:
    """Return the input (tokens, in) of a matrix of a layer whose residual is `x`."""
    found: list[Floats] = []

    def watch(seen: Floats, name: str) -> None:
        if name == f"model.layers.{layer}.{module}.weight":
            found.append(seen)
            raise _InputSeen

    with contextlib.suppress(_InputSeen):
        each.watched_layer(x, layer, watch)
    return found[0]


def encode_model(
    config: ModelConfig, tensors: Tensors, windows: Sequence[Sequence[int]]
) -> Iterator[tuple[str, Codes]]:
    """Yield the name and the codes of every matrix but embedding and head.

    The inputs of each matrix are those behind all matrices that were quantised before ("true sequential").

    Args:
        config: the model's.
        tensors: values of the checkpoint; quantised matrices replace theirs.
        windows: token ids of the calibration text.
    """
    each = FloatPass(config, tensors, windows)
    x = each.embed(each.ids)
    for layer in range(config.num_layers):
        for modules in INPUTS:
            hessian = moments(input_of(each, x, layer, modules[0]))
            for module in modules:
                name = f"model.layers.{layer}.{module}.weight"
                codes = encode(tensors[name], hessian)
                tensors[name] = codes.values()
                yield name, codes
        x = each.layer(x, layer)
