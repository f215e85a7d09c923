"""Random parts of matrices in the formats of other programs."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import GroupedFormat, PackedTensor
from quant.formats.imported import IQ4, IQ4K, K4, K8, MIN4

IMPORTED = (MIN4, K4, K8, IQ4, IQ4K)
_LEVEL_SPREAD = {"min4": 4.6, "k4": 4.6, "k8": 9.2, "iq4": 70.0, "iq4k": 70.0}
"""Standard deviation of random levels."""

Parts = dict[str, NDArray[Any]]


def random_parts(fmt: GroupedFormat, shape: tuple[int, int], seed: int = 0) -> Parts:
    """Return plain parts with every code, and scales and minimums of all sizes and signs."""
    random = np.random.default_rng(seed)
    rows, columns = shape
    groups = (rows, columns // 32)

    def halves(size: tuple[int, ...]) -> NDArray[Any]:
        return (random.standard_normal(size) * 10.0 ** random.uniform(-7, 3, size)).astype(np.float16)

    def factor(size: tuple[int, ...]) -> NDArray[Any]:
        if fmt.scale == "float16":
            return halves(size)
        low, high = (-32, 32) if fmt.scale == "int8" else (0, 64)
        return random.integers(low, high, size).astype(fmt.scale_dtype)

    codes = random.integers(0, fmt.largest_code + 1, shape).astype(np.uint8)
    parts: Parts = {"codes": codes, "scales": factor(groups)}
    if fmt.minimum_sign:
        parts["minimums"] = factor(groups)
    if fmt.super_scales:
        for name in ("super_scales", "super_minimums") if fmt.minimum_sign else ("super_scales",):
            parts[name] = halves((rows, columns // 256))
    return parts


def weights(fmt: GroupedFormat, shape: tuple[int, int], seed: int = 0) -> PackedTensor:
    """Return a matrix whose values are as large as those of a trained model, with a mean near 0."""
    random, parts = np.random.default_rng(seed), random_parts(fmt, shape, seed)
    unit = 1 / np.sqrt(shape[1]) / _LEVEL_SPREAD[fmt.name]
    middle = fmt.largest_code / 2
    if fmt.super_scales:
        low, high = (-32, 32) if fmt.scale == "int8" else (30, 64)
        for name in ("scales", "minimums"):
            if name in parts:
                parts[name] = random.integers(low, high, parts[name].shape).astype(fmt.scale_dtype)
        parts["super_scales"] = (unit / 40 * random.uniform(0.5, 1.5, parts["super_scales"].shape)).astype(np.float16)
        if fmt.minimum_sign:
            parts["super_minimums"] = (parts["super_scales"] * middle).astype(np.float16)
    else:
        parts["scales"] = (unit * random.uniform(0.5, 1.5, parts["scales"].shape)).astype(np.float16)
        if fmt.minimum_sign:
            parts["minimums"] = (parts["scales"] * -middle).astype(np.float16)
    return packed_of(fmt, parts)


def packed_of(fmt: GroupedFormat, parts: Parts) -> PackedTensor:
    """Pack plain parts."""
    others = {name: part for name, part in parts.items() if name not in ("codes", "scales")}
    return fmt.pack(parts["codes"], parts["scales"], 32, **others)
