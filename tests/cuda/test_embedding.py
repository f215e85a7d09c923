"""Embedding rows and SiLU of two matrices, interpreted: equal to their twins to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import PackedTensor, dequantise_rows
from qwchat.cuda.kernels import reference_gemv as twin
from qwchat.cuda.manifest import TARGETS
from tests.cuda import gemv_cases as cases
from tests.cuda.interpreter import Memory

MATRICES = [
    cases.integer_matrix("q4", 40, 384),
    cases.integer_matrix("q8", 40, 384),
    cases.integer_matrix("lin4", 40, 384, group=64, zeros=True),
    cases.integer_matrix("lin4", 40, 384),
    cases.integer_matrix("lin8", 40, 384, group=128),
    *(cases.dense_matrix(name, 40, 96) for name in cases.DENSE),
]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("packed", MATRICES, ids=lambda packed: f"{packed.format}-{packed.group_size}")
def test_embedding_rows_equal_the_twin(packed: PackedTensor, target: int) -> None:
    ids = np.array([3, 39, 0, 16], np.int32)
    memory, columns = Memory(), packed.shape[1]
    residual = memory.place(np.full((4, columns), np.nan, np.float32))
    given = matrix_without_bias(memory, packed)
    cases.run(memory, f"embed_{packed.format}", target, 3, ids=ids, residual=residual, rows=4, **given)
    got = memory.back(residual, np.float32, (4, columns))
    np.testing.assert_array_equal(got, twin.embed(packed, ids))
    np.testing.assert_allclose(got, dequantise_rows(packed, ids), rtol=1e-6)


def test_ids_outside_the_matrix_read_its_ends() -> None:
    packed, memory = cases.integer_matrix("q4", 32, 64), Memory()
    residual = memory.place(np.zeros((2, 64), np.float32))
    ids = np.array([-5, 2**31 - 1], np.int32)
    given = matrix_without_bias(memory, packed)
    cases.run(memory, "embed_q4", 80, 1, ids=ids, residual=residual, rows=2, **given)
    np.testing.assert_array_equal(memory.back(residual, np.float32, (2, 64)), twin.embed(packed, np.array([0, 31])))


def matrix_without_bias(memory: Memory, packed: PackedTensor) -> dict[str, object]:
    given = cases.matrix_arguments(memory, packed)
    del given["bias"]
    return given


@pytest.mark.parametrize("target", TARGETS)
def test_silu_of_two_matrices_equals_the_twin(target: int) -> None:
    random = np.random.default_rng(1)
    gate, up = (3 * random.standard_normal((2, 3, 200))).astype(np.float32)
    gate[0, 5], up[1, 40] = -100, np.inf
    memory = Memory()
    floats = memory.place(np.zeros((3, 192), np.float32))
    x8, xs = memory.place(np.zeros((3, 192), np.int8)), memory.place(np.zeros((3, 6, 2), np.uint32))
    where = {"floats": floats, "x8": x8, "xs": xs}
    cases.run(memory, "silu_quantise", target, 2, gate=gate, up=up, stride=200, rows=3, columns=192, **where)
    wanted = twin.silu_product(gate[:, :192], up[:, :192])
    codes, scales, sums = twin.quantise(wanted)
    np.testing.assert_array_equal(memory.back(floats, np.float32, (3, 192)), wanted)
    got_records = memory.back(xs, np.uint32, (3, 6, 2))
    assert np.isnan(got_records[1, 1, 0].view(np.float32))
    poisoned = np.zeros((3, 6), bool)
    poisoned[1, 1] = True
    np.testing.assert_array_equal(got_records[~poisoned], cases.records(scales, sums)[~poisoned])
    got_codes = memory.back(x8, np.int8, (3, 192)).reshape(3, 6, 32)
    np.testing.assert_array_equal(got_codes[~poisoned], codes.reshape(3, 6, 32)[~poisoned])
