"""Changes to the matrix-vector kernels that their tests must notice."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qwchat.cuda.gemv_shapes import MAX_ROWS
from qwchat.cuda.kernels import reference_gemv as twin
from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda import gemv_cases as cases
from tests.cuda.interpreter import Kernel
from tests.cuda.mutations import survivors
from tests.tiers import count

KINDS = ("barrier", "offset", "swap")
HARMLESS = {
    "range": r"selp\.[bu]64\s.*, -?1, 0,",  # steps of the counter of `range` after its last number
    "half": r"sub\.s32\s",  # the number of an up tile, where `gate_up_outputs` asks only for gate tiles
}
NAMES = [
    "gemv_q4_r1",
    "gemv_lin8_r8",
    "gemv_bf16_r2",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("norm_gemv_q8_r2", "norm_gate_up_lin4_r1", "norm_gate_up_q4_r8", "norm_gemv_f32_r8")
    ),
]


def _check(name: str, kernel: Kernel) -> None:
    """Run a kernel on small matrices: an odd number of tiles, several units per block, warps without work."""
    stage, fmt, tokens = re.fullmatch(r"(\w+)_(\w+)_r(\d)", name).groups()
    rows = int(tokens) - (int(tokens) == MAX_ROWS and fmt not in cases.DENSE)
    with cases.changed(kernel, name):
        for columns, split in ((128, 1), (384, 0)) if stage == "norm_gate_up" else ((128, 3), (384, 0), (192, 2)):
            _compare(stage, fmt, rows, columns, split)
        if stage != "gemv":  # more than four steps of all warps in the norm, which the compiler unrolls
            _compare(stage, fmt, rows, 4224, 1, height=64)
            _compare(stage, fmt, rows, 2176, 1, height=64)


def _compare(stage: str, fmt: str, rows: int, columns: int, split: int, height: int = 0) -> None:
    height = height or (192 if stage == "norm_gate_up" else 48 if split else 304)
    dense, group = fmt in cases.DENSE, 64 if fmt.startswith("lin") else 32
    if dense:
        packed = cases.dense_matrix(fmt, height, columns)
    else:
        packed = cases.integer_matrix(
            fmt, height, columns, group=group, zeros=fmt == "lin4" or (fmt == "lin8" and split > 0)
        )
    x = np.random.default_rng(columns).standard_normal((rows, columns)).astype(np.float32)
    bias = np.random.default_rng(5).standard_normal(height).astype(np.float32)
    norm = np.random.default_rng(4).uniform(0.5, 1.5, columns).astype(np.float32)
    if stage == "gemv":
        wanted = _multiply(packed, x, split, bias)
        np.testing.assert_array_equal(cases.product(packed, x, split=split, blocks=1, bias=bias)[:, :height], wanted)
        out = np.random.default_rng(6).standard_normal((rows, height + 4)).astype(np.float32)
        got = cases.product(packed, x, split=split, blocks=1, bias=bias, out=out.copy())
        out[:, :height] += wanted
        np.testing.assert_array_equal(got, out)
        return
    normed = twin.normalise(x, norm, 1e-6)
    if stage == "norm_gemv":
        wanted = _multiply(packed, normed, split, bias)
        got = cases.normed_product(packed, x, norm, first=0, rows=rows, target=80, split=split, blocks=1, bias=bias)
        np.testing.assert_array_equal(got, wanted)
        return
    wanted = _multiply(packed, normed, split, bias)
    floats, codes, records = cases.gate_up(packed, x, norm, target=80, split=split, blocks=1, bias=bias)
    wanted = twin.silu_product(wanted[:, : height // 2], wanted[:, height // 2 :])
    wanted_codes, scales, sums = twin.quantise(wanted)
    np.testing.assert_array_equal(floats, wanted)
    np.testing.assert_array_equal(codes, wanted_codes)
    np.testing.assert_array_equal(records, cases.records(scales, sums))


def _multiply(packed: twin.PackedTensor, x: twin.Floats, split: int, bias: twin.Floats | None = None) -> twin.Floats:
    if packed.format in cases.DENSE:
        return twin.multiply_floats(packed, x, split, bias)
    codes, scales, _ = twin.quantise(x)
    return twin.multiply(packed, codes, scales, split, bias)


@pytest.mark.interpreter_only
@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_noticed(name: str) -> None:
    header, *entries = ptx_text(kernels()[name].unit, 80).split("\n\n")
    (entry,) = (entry for entry in entries if f".entry {name}(" in entry)
    text = f"{header}\n{entry}\n"
    found = survivors(text, name, lambda kernel: _check(name, kernel), kinds=KINDS, most=count(0, 4), seed=1)
    # What only addresses a prefetch changes no result.
    last_prefetch = text[: text.rindex("prefetch.global")].count("\n") + 1
    found = [change for change in found if change.line > last_prefetch]
    halves = [change for change in found if re.match(HARMLESS["half"], change.before)]
    assert len(halves) <= ("gate_up" in name)
    rest = [change for change in found if change not in halves and not re.match(HARMLESS["range"], change.before)]
    assert [str(change) for change in rest] == []
