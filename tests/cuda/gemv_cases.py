"""Matrices, activations and launches for the tests of the matrix-vector kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.formats import FORMATS, IntegerFormat, PackedTensor
from quant.formats.dense import MatrixFormat
from qwchat.cuda.gemv_shapes import norm_bytes, variant
from qwchat.cuda.kernels import reference_gemv as twin
from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda.interpreter import Kernel, Memory

INTEGERS = [fmt.name for fmt in FORMATS.values() if isinstance(fmt, IntegerFormat)]
DENSE = [fmt.name for fmt in FORMATS.values() if isinstance(fmt, MatrixFormat)]
Floats = NDArray[np.float32]


def integer_matrix(
    name: str, rows: int, columns: int, *, group: int = 32, zeros: bool = False, seed: int = 0
) -> PackedTensor:
    """Return a matrix of random codes. Scales take all values, 0 and the extremes among them."""
    fmt, random = FORMATS[name], np.random.default_rng(seed)
    assert isinstance(fmt, IntegerFormat)
    codes = random.integers(0, fmt.largest_code + 1, (rows, columns)).astype(np.uint8)
    groups = rows, columns // group
    if fmt.scale == "float16":
        scales: NDArray[Any] = random.uniform(-0.1, 0.1, groups)
        scales[0, 0], scales[-1, 0] = 0, 65504
    else:
        low, high = np.iinfo(fmt.scale_dtype).min, np.iinfo(fmt.scale_dtype).max
        scales = random.integers(low, high + 1, groups)
        scales[0, 0], scales[-1, 0], scales[rows // 2, -1] = 0, low, high
    stored = random.integers(0, fmt.largest_code + 1, groups).astype(np.uint8) if zeros else None
    row_scales = random.uniform(0.001, 0.002, rows).astype(np.float32) if fmt.row_scales else None
    return fmt.pack(codes, scales, group, zeros=stored, row_scales=row_scales)


def dense_matrix(name: str, rows: int, columns: int, seed: int = 0) -> PackedTensor:
    """Return a matrix of random values."""
    fmt, values = FORMATS[name], np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    assert isinstance(fmt, MatrixFormat)
    return fmt.pack((values.view(np.uint32) >> 16).astype(np.uint16) if fmt.kernel == "bf16" else values)


def activations(rows: int, columns: int, seed: int = 0) -> Floats:
    """Return random activations: a group of zeros, a group of huge values, a group of tiny ones."""
    x = (3 * np.random.default_rng(seed).standard_normal((rows, columns))).astype(np.float32)
    x[0, :32] = 0
    x[-1, 32:64] *= 1e6
    x[-1, -32:] *= 1e-30
    return x


def records(scales: Floats, sums: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Return scales and sums of codes as the kernels read them."""
    return np.stack([scales.view(np.uint32), sums.view(np.uint32)], -1)


_changed: dict[str, Kernel] = {}


@contextmanager
def changed(kernel: Kernel, name: str) -> Iterator[None]:
    """Run `kernel` instead of the one of this name in the package."""
    _changed[name] = kernel
    try:
        yield
    finally:
        del _changed[name]


@functools.cache
def compiled(name: str, target: int) -> Kernel:
    """Return a kernel of the package."""
    return Kernel(ptx_text(kernels()[name].unit, target), name)


def run(
    memory: Memory, name: str, target: int, blocks: int, *, shared_bytes: int = 0, seed: int = 0, **given: Any
) -> None:
    """Run a kernel with arguments by name; arrays are placed in memory."""
    record = kernels()[name]
    expected = [parameter for parameter, _ in record.parameters]
    assert sorted(given) == sorted(expected)
    arguments = [memory.place(value) if isinstance(value, np.ndarray) else value for value in map(given.get, expected)]
    kernel = _changed.get(name) or compiled(name, target)
    kernel.run(memory, blocks, record.threads, *arguments, shared_bytes=shared_bytes, seed=seed)


def matrix_arguments(memory: Memory, packed: PackedTensor, bias: Floats | None = None) -> dict[str, Any]:
    """Place the parts of a matrix and return the arguments that describe it."""
    place = {name: memory.place(part) for name, part in packed.parts.items()}
    given = {"bias": 0 if bias is None else memory.place(bias), "columns": packed.shape[1], "tiles": packed.num_tiles}
    if packed.format in DENSE:
        return given | place
    shift = (packed.group_size // 32).bit_length() - 1
    return given | {"zeros": 0, "row_scales": 0} | place | {"scale_shift": shift}


def product(
    packed: PackedTensor,
    x: Floats,
    *,
    target: int = 80,
    split: int = 3,
    blocks: int = 2,
    bias: Floats | None = None,
    out: Floats | None = None,
    seed: int = 0,
) -> Floats:
    """Return what `gemv` stores for activations `x`, or adds to `out`."""
    memory, rows, padded = Memory(), len(x), 16 * packed.num_tiles
    where = memory.place(np.full((rows, padded + 4), np.nan, np.float32) if out is None else out)
    given: dict[str, Any] = {"x": x}
    if packed.format in INTEGERS:
        codes, scales, sums = twin.quantise(x)
        given = {"x8": codes, "xs": records(scales, sums)}
    given |= matrix_arguments(memory, packed, bias)
    given |= {"out": where, "out_stride": padded + 4, "accumulate": int(out is not None), "rows": rows, "split": split}
    run(memory, f"gemv_{packed.format}_r{variant(rows)}", target, blocks, seed=seed, **given)
    return memory.back(where, np.float32, (rows, padded + 4))


def normed_product(
    packed: PackedTensor,
    residual: Floats,
    norm: Floats,
    *,
    first: int,
    rows: int,
    target: int,
    split: int,
    blocks: int,
    bias: Floats | None = None,
) -> Floats:
    """Return what `norm_gemv` stores for `rows` rows of the residual from `first` on."""
    memory, padded = Memory(), 16 * packed.num_tiles
    out = memory.place(np.full((rows, padded), np.nan, np.float32))
    given = matrix_arguments(memory, packed, bias)
    given |= {"residual": residual, "norm": norm, "epsilon": 1e-6, "first": np.array([first], np.int32)}
    given |= {"out": out, "out_stride": padded, "rows": rows, "split": split}
    shared = norm_bytes(rows, packed.shape[1]) if packed.format in INTEGERS else 0
    run(memory, f"norm_gemv_{packed.format}_r{variant(rows)}", target, blocks, shared_bytes=shared, **given)
    return memory.back(out, np.float32, (rows, padded))


def gate_up(
    packed: PackedTensor,
    residual: Floats,
    norm: Floats,
    *,
    target: int,
    split: int,
    blocks: int,
    bias: Floats | None = None,
) -> tuple[Floats, NDArray[np.int8], NDArray[np.uint32]]:
    """Return what `norm_gate_up` stores: floats, codes and records."""
    memory, rows, columns = Memory(), len(residual), packed.shape[0] // 2
    floats = memory.place(np.full((rows, columns), np.nan, np.float32))
    x8 = memory.place(np.full((rows, columns), 99, np.int8))
    xs = memory.place(np.full((rows, columns // 32, 2), 0xFFFFFFFF, np.uint32))
    given = matrix_arguments(memory, packed, bias)
    given |= {"residual": residual, "norm": norm, "epsilon": 1e-6, "floats": floats, "x8": x8, "xs": xs}
    given |= {"rows": rows, "split": split}
    shared = norm_bytes(rows, packed.shape[1]) if packed.format in INTEGERS else 0
    run(memory, f"norm_gate_up_{packed.format}_r{variant(rows)}", target, blocks, shared_bytes=shared, **given)
    return (
        memory.back(floats, np.float32, (rows, columns)),
        memory.back(x8, np.int8, (rows, columns)),
        memory.back(xs, np.uint32, (rows, columns // 32, 2)),
    )
