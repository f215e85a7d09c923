"""RMSNorm, SwiGLU, RoPE and the cache in prefill, interpreted, against their twins and the CPU's definitions."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cuda.kernels import reference_prefill
from qwchat.cuda.manifest import TARGETS
from tests.cuda.interpreter import Memory
from tests.cuda.prefill_row_checks import check_norm, check_rope, check_silu, empty_caches, random_rotation, run_rope
from tests.cuda.prefill_runs import kernel_of, launch, random_rows
from tests.tiers import some

SHAPES = [(3, 896), (2, 32), (1, 2560), (9, 4864)]
HEADS = [(7, 1, 1, 64), (5, 4, 2, 64), (5, 6, 1, 128), (5, 7, 1, 64), (5, 8, 1, 128), (5, 2, 2, 64)]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("tokens", "columns"), some(SHAPES, 2))
def test_norm(target: int, tokens: int, columns: int) -> None:
    check_norm(kernel_of("norm_rows_f16", target), tokens, columns)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("tokens", "columns"), some(SHAPES, 2))
def test_silu(target: int, tokens: int, columns: int) -> None:
    check_silu(kernel_of("silu_f16", target), tokens, columns)


def test_an_operand_in_plain_order_is_the_row() -> None:
    x = random_rows(5, 64)
    values = reference_prefill.plain_rows(*reference_prefill.activation_rows(x))
    assert (np.abs(values - x) <= np.abs(x) * 2**-11 + np.abs(x).max(1, keepdims=True) * 2**-38).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf])
def test_a_number_that_is_not_finite_stays_in_its_row(poison: float) -> None:
    x = random_rows(3, 64)
    x[1, 9] = poison
    memory = Memory()
    xh, xf = memory.place_empty((3, 64), np.float16), memory.place_empty(3, np.float32)
    weight = memory.place(np.ones(64, np.float32))
    arguments = {"residual": memory.place(x), "weight": weight, "xh": xh, "xf": xf, "columns": 64, "epsilon": 1e-6}
    launch(kernel_of("norm_rows_f16", 90), memory, 3, **arguments)
    values = reference_prefill.plain_rows(memory.back(xh, np.float16, (3, 64)), memory.back(xf, np.float32))
    assert np.isfinite(values[[0, 2]]).all()
    assert not np.isfinite(values[1]).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["f16", "q8"])
@pytest.mark.parametrize("full", [False, True], ids=["qwen2", "qwen3"])
@pytest.mark.parametrize(("tokens", "heads", "kv_heads", "head_dim"), some(HEADS, 3))
def test_rope(target: int, kind: str, full: bool, tokens: int, heads: int, kv_heads: int, head_dim: int) -> None:
    check_rope(kernel_of(f"rope_append_{kind}", target), kind, full, tokens, heads, kv_heads, head_dim)


def test_an_8_bit_cache_stores_zeros_and_marks_what_is_not_finite() -> None:
    qkv = np.zeros((2, 3 * 64), np.float32)
    qkv[1, 70], qkv[1, 140] = np.nan, np.inf
    caches = empty_caches("q8", 1, 64, 64)
    _, parts = run_rope(kernel_of("rope_append_q8", 80), qkv, 1, 1, 64, 0, random_rotation(2, 1, 64, False), caches)
    for name in ("key", "value"):
        assert (parts[name + "s"][0, 0] == 0).all()
        assert (parts[name + "_scales"][0, 0] == 0).all()
        assert np.isnan(parts[name + "_scales"][0, 1, 0])
    assert parts["value_scales"][0, 1, 1] == 0
