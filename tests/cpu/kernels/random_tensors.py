"""Random packed tensors, and what hands them to a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import PackedTensor, layout
from quant.model_config import ModelConfig

# (format, group size, zero points)
KINDS = [
    ("q4", 32, False),
    ("q8", 32, False),
    ("q6", 32, False),
    ("lin4", 32, False),
    ("lin4", 64, True),
    ("lin4", 128, True),
    ("lin8", 128, False),
    ("lin8", 64, True),
    ("min4", 32, False),
    ("k4", 32, False),
    ("k8", 32, False),
    ("iq4", 32, False),
    ("iq4k", 32, False),
    ("bf16", 0, False),
    ("f32", 0, False),
]


def random_packed(
    kind: tuple[str, int, bool], rows: int, columns: int, rng: np.random.Generator, extreme: bool = False
) -> PackedTensor:
    """Return a tensor with all codes and scale bytes that its format allows; padding rows are random too."""
    name, group, zeros = kind
    parts: dict[str, NDArray[Any]] = {}
    for part, (dtype, shape) in layout(name, (rows, columns), group, zeros).items():
        if dtype == np.dtype(np.float16):
            parts[part] = rng.uniform(1e-3, 6e4 if extreme else 1, shape).astype(dtype)
        elif dtype == np.dtype(np.float32):
            wide = 10.0 ** rng.uniform(-20, 10, shape) if extreme else rng.uniform(0.01, 1, shape)
            parts[part] = (wide * rng.choice([-1, 1], shape)).astype(dtype)
        elif name == "bf16":
            parts[part] = (rng.standard_normal(shape).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
        else:
            low, high = (-128, 128) if dtype == np.dtype(np.int8) else (0, 256)
            parts[part] = rng.integers(low, high, shape).astype(dtype)
    if name == "k8":
        parts["codes"] &= 31
    if name == "q8":
        parts["codes"] = np.maximum(parts["codes"], 1)
    return PackedTensor(name, (rows, columns), group, parts)


class Folder:
    """A fake model folder: tensors by name, and a config if the test needs one."""

    def __init__(self, config: ModelConfig | None = None, **tensors: PackedTensor) -> None:
        self.path = Path("memory")
        self._config = config
        self._tensors = tensors

    @property
    def config(self) -> ModelConfig:
        assert self._config is not None
        return self._config

    def tensor(self, name: str) -> PackedTensor:
        return self._tensors[name]


def vector(values: NDArray[np.float32]) -> PackedTensor:
    """Return a bias or norm as the container returns it."""
    return PackedTensor("vector", values.shape, 0, {"values": values})


def aligned(size: int, fill: int) -> np.ndarray:
    """Return `size` bytes of the value `fill`, starting on a cache line."""
    raw = np.full(size + 64, fill, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size]
