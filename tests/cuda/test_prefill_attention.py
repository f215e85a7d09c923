"""Attention of prefill, interpreted, against its twin and against the CPU's definition."""

from __future__ import annotations

import numpy as np
import pytest

from qwchat.cpu.kernels import reference
from qwchat.cuda.manifest import TARGETS
from tests.cuda.prefill_runs import (
    AttentionCase,
    assert_close,
    attention_twin,
    kernel_of,
    random_cache,
    random_queries,
    run_attention,
    ulps,
)
from tests.tiers import some

SMALL = [(64, 4, 2, 9, 0), (128, 7, 1, 11, 30), (64, 6, 1, 12, 63), (128, 8, 1, 10, 129), (64, 2, 2, 70, 1)]
LONG = [(64, 7, 1, 33, 900), (128, 6, 1, 21, 3000 - 21), (64, 8, 2, 64, 2048), (128, 2, 2, 65, 513)]
"""Head size, heads, KV heads, tokens, position."""
HALF = 2**-11


def case_of(kind: str, shape: tuple[int, ...]) -> AttentionCase:
    return AttentionCase(kind, *shape)


def check(target: int, case: AttentionCase) -> None:
    parts, keys, values = random_cache(case)
    queries = random_queries(case)
    got = run_attention(kernel_of(case.kernel, target), case, queries, parts)
    wanted = attention_twin(case, queries, keys, values)
    # The result is rounded to f16. Before that, both agree to a few parts in a million, unless the f16 of a weight
    # is the next one: that is at most 2**-11 of a value.
    assert (np.abs(got - wanted) <= HALF * np.abs(wanted) + 1e-4 * np.abs(values).max()).all()
    assert (ulps(got, wanted) > 0).mean() < 0.02


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["f16", "q8"])
@pytest.mark.parametrize("shape", some(SMALL, 2), ids=str)
def test_attention_is_that_of_the_twin(target: int, kind: str, shape: tuple[int, ...]) -> None:
    check(target, case_of(kind, shape))


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["f16", "q8"])
@pytest.mark.parametrize("shape", LONG, ids=str)
def test_long_caches(target: int, kind: str, shape: tuple[int, ...]) -> None:
    check(target, case_of(kind, shape))


@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_attention_is_the_definition_up_to_f16(kind: str) -> None:
    case = case_of(kind, (64, 6, 2, 9, 25))
    parts, keys, values = random_cache(case)
    queries = random_queries(case)
    got = run_attention(kernel_of(case.kernel, 90), case, queries, parts)
    for token in range(case.tokens):
        seen = [x[:, : case.position + token + 1].swapaxes(0, 1).astype(np.float32) for x in (keys, values)]
        wanted = reference.attention(queries[token].astype(np.float32) * np.float32(np.log(2)), *seen)
        wanted = wanted if kind == "f16" else reference.hadamard(wanted) / np.float32(32)
        assert_close(got[token], wanted, 1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_a_row_does_not_depend_on_the_rows_of_its_block(target: int) -> None:
    case = case_of("f16", (64, 2, 1, 20, 40))
    parts, _, _ = random_cache(case)
    queries = random_queries(case)
    kernel = kernel_of(case.kernel, target)
    later = case_of("f16", (64, 2, 1, 9, 51))
    np.testing.assert_array_equal(
        run_attention(kernel, case, queries, parts)[11:], run_attention(kernel, later, queries[11:].copy(), parts)
    )


def test_large_scores_pick_one_position() -> None:
    case = case_of("f16", (64, 1, 1, 9, 100))
    parts, keys, values = random_cache(case)
    queries = np.zeros((9, 1, 64), np.float16)
    queries[:] = keys[0, 55].astype(np.float32) * 300
    got = run_attention(kernel_of(case.kernel, 90), case, queries, parts)
    np.testing.assert_array_equal(got[:, 0], np.broadcast_to(values[0, 55], (9, 64)))


@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_a_position_that_is_not_finite_is_noticed(kind: str) -> None:
    case = case_of(kind, (64, 1, 1, 9, 20))
    parts, _, _ = random_cache(case)
    name = "keys" if kind == "f16" else "key_scales"
    parts[name][0, 7, 0] = np.nan
    got = run_attention(kernel_of(case.kernel, 80), case, random_queries(case), parts)
    assert np.isnan(got).all(-1).all()
