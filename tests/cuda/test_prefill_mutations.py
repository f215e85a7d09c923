"""The tests of prefill's kernels notice changes of their PTX."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from qwchat.cuda.kernels import reference_prefill
from qwchat.cuda.manifest import kernels, ptx_text
from tests.cuda.interpreter import Kernel
from tests.cuda.mutations import survivors
from tests.cuda.prefill_row_checks import check_norm, check_rope, check_silu
from tests.cuda.prefill_runs import (
    AttentionCase,
    assert_close,
    attention_twin,
    random_cache,
    random_queries,
    random_rows,
    random_weights,
    run_attention,
    run_gemm,
)

Check = Callable[[Kernel], None]


def gemm_check(name: str, group_size: int, zeros: bool) -> Check:
    """Return a check with a second block of rows and of tokens, padding tokens, and every option."""
    packed = random_weights(name, 160, 256, group_size, zeros)
    xh, xf = reference_prefill.activation_rows(random_rows(70, 256))
    random = np.random.default_rng(1)
    bias, old = random.standard_normal(160).astype(np.float32), random.standard_normal((70, 160)).astype(np.float32)
    plain = reference_prefill.gemm(packed, xh, xf)

    def check(kernel: Kernel) -> None:
        assert_close(run_gemm(kernel, packed, xh, xf), plain, 1e-6)
        assert_close(run_gemm(kernel, packed, xh, xf, bias, old), plain + bias + old, 1e-6)

    return check


def attention_check(case: AttentionCase) -> Check:
    parts, keys, values = random_cache(case)
    queries = random_queries(case)
    wanted = attention_twin(case, queries, keys, values)

    def check(kernel: Kernel) -> None:
        got = run_attention(kernel, case, queries, parts)
        assert (np.abs(got - wanted) <= 2**-11 * np.abs(wanted) + 1e-4 * np.abs(values).max()).all()

    return check


GEMMS = [
    ("gemm_q4", 80, ("q4", 32, False)),
    ("gemm_lin8", 75, ("lin8", 64, True)),
    ("gemm_bf16", 90, ("bf16", 0, False)),
]
ATTENTION = [("f16", 64, 80), ("q8", 128, 75)]
KINDS = ("barrier", "swap", "offset")

SAME = 10
"""Comparisons of attention that may change: a tile that is masked although it need not be, bounds of loops that are
never met, and which of several rows writes what they all would write. All others, such as the masks, must not."""


def attention_checks(kind: str, head_dim: int) -> Check:
    """Return a check in which each column of a tile is the last that a row of either half of a warp sees."""
    cases = ((1, 1, 70, 0), (1, 1, 70, 8), (6, 2, 23, 140))
    checks = [attention_check(AttentionCase(kind, head_dim, *case)) for case in cases]

    def check(kernel: Kernel) -> None:
        for each in checks:
            each(kernel)

    return check


def unnoticed(name: str, target: int, check: Check, kinds: tuple[str, ...], most: int) -> list[str]:
    found = survivors(ptx_text(kernels()[name].unit, target), name, check, kinds=kinds, most=most, seed=2)
    return [str(each) for each in found]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "target", "kind"), GEMMS, ids=str)
def test_changes_of_a_product_are_noticed(name: str, target: int, kind: tuple[str, int, bool]) -> None:
    assert unnoticed(name, target, gemm_check(*kind), KINDS, 80) == []


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "head_dim", "target"), ATTENTION)
def test_changes_of_attention_are_noticed(kind: str, head_dim: int, target: int) -> None:
    name, case = f"prefill_attention_{kind}_d{head_dim}", AttentionCase(kind, head_dim, 6, 2, 23, 140)
    assert unnoticed(name, target, attention_check(case), KINDS, 40) == []
    found = unnoticed(name, target, attention_checks(kind, head_dim), ("comparison",), 0)
    assert len(found) <= SAME, "\n".join(found)


@pytest.mark.parametrize(("name", "target", "kind"), GEMMS[:1], ids=str)
def test_a_barrier_of_a_product_is_needed(name: str, target: int, kind: tuple[str, int, bool]) -> None:
    assert unnoticed(name, target, gemm_check(*kind), ("barrier",), 0) == []


def test_a_barrier_of_attention_is_needed() -> None:
    check = attention_check(AttentionCase("f16", 64, 2, 1, 9, 140))
    assert unnoticed("prefill_attention_f16_d64", 90, check, ("barrier",), 0) == []


HARMLESS = re.compile(r"swap: (selp\.b64 .*(-1, 0|, 0), %p|selp\.b32 .*1, 2, %p|sub\.s64)")
"""The step to an element after the last one; the order in which blocks take keys and values; n - n."""
ROPES = ((7, 1, 1, 64), (5, 2, 2, 128))
ROWS: list[tuple[str, Check]] = [
    ("norm_rows_f16", lambda kernel: [check_norm(kernel, *shape) for shape in ((2, 32), (16, 2560), (2, 8224))]),
    ("silu_f16", lambda kernel: [check_silu(kernel, *shape) for shape in ((2, 32), (16, 2560), (1, 4864))]),
    ("rope_append_f16", lambda kernel: [check_rope(kernel, "f16", True, *shape) for shape in ROPES]),
    ("rope_append_q8", lambda kernel: [check_rope(kernel, "q8", True, *shape) for shape in ROPES]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "check"), ROWS, ids=[name for name, _ in ROWS])
def test_changes_of_kernels_of_rows_are_noticed(name: str, check: Check) -> None:
    found = [each for each in unnoticed(name, 80, check, KINDS, 0) if not HARMLESS.search(each)]
    assert found == []
