"""Kernels of prefill on the interpreter: random operands, buffers full of poison, launches by keyword."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from quant.formats import FORMATS, PackedTensor, layout
from quant.formats.q4 import CODEBOOK
from qwchat.cuda.kernels import reference_prefill, reference_prefill_attention
from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda.interpreter import Kernel, Memory

LEVELS = (CODEBOOK.astype(np.int16) + 128).astype(np.uint8)
GUARD = 8
"""Floats after each row of an output, which must not be written."""


@functools.cache
def kernel_of(name: str, target: int) -> Kernel:
    return Kernel(ptx_text(kernels()[name].unit, target), name)


def launch(kernel: Kernel, memory: Memory, grid: int, **arguments: float) -> None:
    """Run a kernel of the package with its parameters by name."""
    record = kernels()[kernel.program.name]
    names = [name for name, _ in record.parameters]
    assert set(names) == set(arguments)
    kernel.run(memory, grid, record.threads, *(arguments[name] for name in names))


def random_weights(name: str, rows: int, columns: int, group_size: int = 0, zeros: bool = False) -> PackedTensor:
    """Return a matrix with every code, scale and zero point that its format allows; one group has the scale 0."""
    random = np.random.default_rng(rows * columns + group_size)
    parts = {}
    for part, (dtype, shape) in layout(name, (rows, columns), group_size, zeros).items():
        if part in ("codes", "zeros"):
            high = 256 if part == "codes" else FORMATS[name].largest_code + 1
            values = random.integers(0, high, shape)
        elif part == "scales" and dtype.itemsize == 1:
            values = random.integers(np.iinfo(dtype).min, np.iinfo(dtype).max + 1, shape)
        elif dtype == np.uint16:
            values = random.normal(0, 0.05, shape).astype(np.float32).view(np.uint32) >> 16
        else:
            values = random.normal(0, 0.05, shape)
        parts[part] = values.astype(dtype)
    if "scales" in parts:
        parts["scales"][0, 0] = 0
    return PackedTensor(name, (rows, columns), group_size, parts)


def random_rows(tokens: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return rows of very different magnitude, some with single large values."""
    random = np.random.default_rng(seed + tokens + columns)
    x = random.standard_normal((tokens, columns)) * 10.0 ** random.integers(-4, 6, (tokens, 1))
    x[::3, random.integers(columns)] *= 1000
    return x.astype(np.float32)


def run_gemm(
    kernel: Kernel,
    packed: PackedTensor,
    xh: np.ndarray,
    xf: np.ndarray,
    bias: np.ndarray | None = None,
    old: np.ndarray | None = None,
) -> np.ndarray:
    """Return (tokens, 16 * tiles); check that nothing else is written. `old`: what it adds to."""
    memory, rows = Memory(), 16 * packed.num_tiles
    before = np.full((len(xh), rows + GUARD), np.nan, np.float32)
    if old is not None:
        before[:, :rows] = old
    out = memory.place(before)
    record = kernels()[kernel.program.name]
    parts = {name: memory.place(part) for name, part in packed.parts.items()}
    if "group_shift" in dict(record.parameters):
        parts = {"zeros": 0, **parts, "group_shift": packed.group_size.bit_length() - 6}
    if "table" in dict(record.parameters):
        parts["table"] = memory.place(LEVELS)
    launch(
        kernel,
        memory,
        -(-packed.num_tiles // 8) * -(-len(xh) // 64),
        **parts,
        bias=0 if bias is None else memory.place(bias),
        xh=memory.place(xh),
        xf=memory.place(xf),
        out=out,
        columns=packed.shape[1],
        tiles=packed.num_tiles,
        tokens=len(xh),
        out_stride=rows + GUARD,
        accumulate=int(old is not None),
    )
    result = memory.back(out, np.float32, before.shape)
    assert np.isnan(result[:, rows:]).all()
    return result[:, :rows].copy()


def assert_close(got: np.ndarray, wanted: np.ndarray, bound: float) -> None:
    """Compare rows, each by its own largest magnitude."""
    largest = np.abs(wanted).reshape(len(wanted), -1).max(1)
    error = np.abs(got.astype(np.float64) - wanted).reshape(len(wanted), -1).max(1)
    assert (error <= bound * largest).all(), (error / largest).max()


def ulps(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return how many f16 numbers lie between two arrays."""
    bits = [np.ascontiguousarray(x, np.float16).view(np.int16).astype(np.int32) for x in (got, wanted)]
    ordered = [np.where(x < 0, -(x & 0x7FFF), x) for x in bits]
    return np.abs(ordered[0] - ordered[1])


@dataclass(frozen=True)
class AttentionCase:
    """Heads, and tokens at a position; `kind` is that of the cache."""

    kind: str
    head_dim: int
    heads: int
    kv_heads: int
    tokens: int
    position: int

    @property
    def end(self) -> int:
        return self.position + self.tokens

    @property
    def capacity(self) -> int:
        return -(-self.end // 64) * 64

    @property
    def kernel(self) -> str:
        return f"prefill_attention_{self.kind}_d{self.head_dim}"


def in_cache(part: np.ndarray, case: AttentionCase) -> np.ndarray:
    """Return (kv_heads, capacity, …) with poison beyond the positions of `part` (kv_heads, positions, …)."""
    bits = np.full((case.kv_heads, case.capacity, part.shape[2] * part.itemsize), 0xFF, np.uint8)
    cache = bits.view(part.dtype)
    cache[:, : part.shape[1]] = part
    return cache


def random_cache(case: AttentionCase, seed: int = 0) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Return the parts of a cache, and the keys and values (kv_heads, positions, head_dim) f16 that it holds."""
    random = np.random.default_rng(seed + case.end)
    keys, values = random.standard_normal((2, case.kv_heads, case.end, case.head_dim)).astype(np.float32)
    if case.kind == "f16":
        keys, values = keys.astype(np.float16), values.astype(np.float16)
        return {"keys": keys, "values": values}, keys, values
    parts = {}
    for name, x in (("key", keys), ("value", values)):
        parts[name + "s"], parts[name + "_scales"] = reference_prefill_attention.quantised(x * np.float32(5.6))
    keys, values = (
        reference_prefill_attention.decoded(parts[name + "s"], parts[name + "_scales"]) for name in ("key", "value")
    )
    return parts, keys, values


def random_queries(case: AttentionCase, seed: int = 0) -> np.ndarray:
    """Return scaled queries (tokens, heads, head_dim) f16, with scores of some units."""
    random = np.random.default_rng(seed + 7)
    size = 2 if case.kind == "f16" else 0.4
    queries = random.standard_normal((case.tokens, case.heads, case.head_dim)) * size * case.head_dim**-0.25
    return queries.astype(np.float16)


def run_attention(kernel: Kernel, case: AttentionCase, queries: np.ndarray, parts: dict[str, np.ndarray]) -> np.ndarray:
    """Return attention (tokens, heads, head_dim) f64, from what the next GEMM would read."""
    memory = Memory()
    xh = memory.place_empty((case.tokens, case.heads * case.head_dim), np.float16)
    xf = memory.place_empty(case.tokens, np.float32)
    launch(
        kernel,
        memory,
        case.kv_heads * -(-case.tokens * case.heads // case.kv_heads // 64),
        queries=memory.place(queries),
        **{name: memory.place(in_cache(part, case)) for name, part in parts.items()},
        step=memory.place(np.array([case.tokens, case.position, 0, 0, 0, 0, 0, 0], np.int32)),
        xh=xh,
        xf=xf,
        heads=case.heads,
        kv_heads=case.kv_heads,
        capacity=case.capacity,
    )
    halves = memory.back(xh, np.float16, (case.tokens, -1))
    return reference_prefill.plain_rows(halves, memory.back(xf, np.float32)).reshape(queries.shape)


def attention_twin(case: AttentionCase, queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    tile = 4096 // case.head_dim
    result = reference_prefill_attention.attention(queries, keys, values, case.position, tile)
    return result if case.kind == "f16" else reference_prefill_attention.hadamard(result) / np.float32(32)
