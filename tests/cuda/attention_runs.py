"""Decode attention on the interpreter: random layers and caches, buffers on the device, one pass after another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qwchat.cuda.kernels.reference_attention import AttentionInput, CachedLayer, hadamard, quantise_kv
from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda.interpreter import Kernel, Memory

MOST_TOKENS = 8
ROW_TILE = 16
_KERNELS: dict[tuple[str, int], Kernel] = {}


@dataclass(frozen=True)
class Case:
    kind: str
    head_dim: int
    heads: int
    kv_heads: int
    splits: int
    norms: bool = False
    offsets: bool = True

    @property
    def kernel(self) -> str:
        return f"attend_{self.kind}_d{self.head_dim}"

    @property
    def width(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim


def kernel_of(name: str, target: int) -> Kernel:
    if (name, target) not in _KERNELS:
        _KERNELS[name, target] = Kernel(ptx_text(kernels()[name].unit, target), name)
    return _KERNELS[name, target]


def random_layer(case: Case, capacity: int, seed: int = 0) -> tuple[AttentionInput, CachedLayer]:
    """Return a layer, and a cache that is full of random positions."""
    random = np.random.default_rng(seed)
    angles = np.outer(np.arange(capacity), 10000.0 ** (-np.arange(case.head_dim // 2) / (case.head_dim / 2)))
    weights = random.uniform(0.5, 1.5, (2, case.head_dim)).astype(np.float32)
    layer = AttentionInput(
        case.heads,
        np.cos(angles).astype(np.float32),
        np.sin(angles).astype(np.float32),
        weights[0] if case.norms else None,
        weights[1] if case.norms else None,
        random.normal(size=(case.kv_heads, case.head_dim)).astype(np.float32) if case.offsets else None,
        1e-6,
    )
    keys, values = random.normal(size=(2, case.kv_heads, capacity, case.head_dim)).astype(np.float32)
    if case.kind == "f16":
        return layer, CachedLayer(keys.astype(np.float16), values.astype(np.float16))
    (keys, key_scales), (values, value_scales) = quantise_kv(hadamard(keys)), quantise_kv(hadamard(values))
    return layer, CachedLayer(keys, values, key_scales, value_scales)


def poison(cache: CachedLayer, end: int) -> None:
    """Make the positions from `end` on NaN, or a scale of NaN."""
    for scales, codes in ((cache.key_scales, cache.keys), (cache.value_scales, cache.values)):
        if scales is None:
            codes[:, end:] = np.nan
        else:
            codes[:, end:], scales[:, end:] = 77, np.nan


class Device:
    """A layer's buffers in the interpreter's memory. Scratch and outputs are poisoned."""

    def __init__(
        self,
        case: Case,
        layer: AttentionInput,
        cache: CachedLayer,
        target: int,
        tokens: int = MOST_TOKENS,
        kernel: Kernel | None = None,
    ) -> None:
        self.case, self.memory = case, Memory()
        self.kernel = kernel or kernel_of(case.kernel, target)
        self.capacity, columns = cache.keys.shape[1], case.heads * case.head_dim
        self.row_tiles = -(-tokens * case.heads // case.kv_heads // ROW_TILE)
        partials = (self.row_tiles, case.kv_heads, case.splits, 24 * case.head_dim + 32)
        arrays = {
            "q_norm": layer.q_norm,
            "k_norm": layer.k_norm,
            "cos": layer.cos,
            "sin": layer.sin,
            "key_offset": layer.key_offset,
            "keys": cache.keys,
            "key_scales": cache.key_scales,
            "values": cache.values,
            "value_scales": cache.value_scales,
            "partials": np.full(partials, np.nan, np.float32),
            "arrivals": np.zeros(self.row_tiles * case.kv_heads, np.int32),
            "x8": np.full((MOST_TOKENS, columns), 99, np.int8),
            "floats": np.full((MOST_TOKENS, columns), np.nan, np.float32),
            "xs": np.full((MOST_TOKENS, columns // 32, 2), 0xFFFFFFFF, np.uint32),
        }
        self.arrays = arrays
        self.places = {name: 0 if array is None else self.memory.place(array.copy()) for name, array in arrays.items()}
        self.numbers = {
            "heads": case.heads,
            "kv_heads": case.kv_heads,
            "splits": case.splits,
            "capacity": self.capacity,
            "epsilon": layer.epsilon,
        }

    def array(self, name: str) -> np.ndarray:
        like = self.arrays[name]
        return self.memory.back(self.places[name], like.dtype, like.shape)

    def attend(self, qkv: np.ndarray, position: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Run one pass; return codes and records of its tokens."""
        tokens = len(qkv)
        step = np.array([tokens, position, 0, 0, 0, 0, 0, 0], np.int32)
        record = kernels()[self.case.kernel]
        given = self.places | self.numbers | {"step": self.memory.place(step), "qkv": self.memory.place(qkv)}
        arguments = [given[name] for name, _ in record.parameters]
        grid = self.row_tiles * self.case.kv_heads * self.case.splits
        self.kernel.run(self.memory, grid, record.threads, *arguments, seed=seed)
        assert not self.array("arrivals").any()
        return self.array("x8")[:tokens].copy(), self.array("xs")[:tokens].copy()

    def cache_bytes(self) -> bytes:
        names = ("keys", "values", "key_scales", "value_scales")
        return b"".join(self.array(name).tobytes() for name in names if self.places[name])


def scales_of(records: np.ndarray) -> np.ndarray:
    return records[..., 0].copy().view(np.float32)
