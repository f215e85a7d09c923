"""q6 in the layout of q8: the same values, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import PackedTensor, check_packed, dequantise, layout
from quant.formats.linear import LIN4
from quant.formats.q6 import Q6
from quant.formats.q8 import Q8
from quant.formats.widening import device_layout, widen_tiles
from tests.cpu.kernels.random_tensors import random_packed


@pytest.mark.parametrize("shape", [(1, 32), (16, 64), (33, 96), (70, 896)])
def test_values_are_the_same(shape: tuple[int, int]) -> None:
    packed = random_packed(("q6", 32, False), *shape, np.random.default_rng(shape[0]))
    packed.parts["scales"][0, 0] = [-128, -127, -1, 0, 1, 127, *range(-5, 5)]
    before = {name: part.copy() for name, part in packed.parts.items()}
    wide = PackedTensor("q8", shape, 32, widen_tiles(Q6, packed, 0, packed.num_tiles))
    check_packed(wide)
    assert np.array_equal(dequantise(wide), dequantise(packed))
    assert all(np.array_equal(part, before[name]) for name, part in packed.parts.items())
    assert list(wide.parts) == list(layout("q8", shape, 32))


def test_tiles_are_those_of_the_whole() -> None:
    packed = random_packed(("q6", 32, False), 70, 128, np.random.default_rng(2))
    for part in packed.parts.values():
        part.flags.writeable = False  # as those of a mapped file
    whole = widen_tiles(Q6, packed, 0, 5)
    for first, last in ((0, 2), (2, 3), (3, 5)):
        for name, part in widen_tiles(Q6, packed, first, last).items():
            assert np.array_equal(part, whole[name][first:last])


def test_the_layout_on_a_device() -> None:
    assert device_layout(Q6, layout("q6", (40, 96), 32)) == (Q8, layout("q8", (48, 96), 32))
    parts = layout("lin4", (40, 96), 32, zeros=True)
    assert device_layout(LIN4, parts) == (LIN4, parts)
