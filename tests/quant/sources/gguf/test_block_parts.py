"""Blocks of every type against the Python package gguf, bit for bit."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from quant.formats.imported import GROUP_SIZE
from quant.sources import QuantisedRows
from quant.sources.gguf.block_parts import HOMES, float_rows, home_parts
from quant.sources.gguf.block_types import BLOCK_TYPES, OTHER_TYPES, BlockType
from tests.quant.sources.gguf.models import HALVES, TYPES, random_blocks, reference
from tests.tiers import count

Array = NDArray[Any]
HALF = st.one_of(
    st.integers(0, 0xFFFF),  # every f16, including subnormal, infinite and NaN
    st.sampled_from([0x0000, 0x8000, 0x0001, 0x8001, 0x03FF, 0x83FF, 0x0400, 0x7BFF, 0xFBFF]),
)


def imported(kind: BlockType, blocks: Array) -> Array:
    """Return the values that are imported."""
    if kind.name in HOMES:
        return QuantisedRows(HOMES[kind.name], GROUP_SIZE, home_parts(kind.name, blocks)).dequantise()
    return float_rows(kind.name, blocks)


def assert_same_bits(values: Array, expected: Array) -> None:
    assert values.dtype == expected.dtype == np.float32
    assert values.shape == expected.shape
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(values), nan)
    assert np.array_equal(values.view(np.uint32)[~nan], expected.view(np.uint32)[~nan])


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=count(200, 12))
@given(data=st.data())
def test_values_are_those_of_gguf_py(name: str, data: st.DataObject) -> None:
    kind = TYPES[name]
    rows, number = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    blocks = random_blocks(kind, rows, number * max(kind.weights, 32), data.draw(st.integers(0, 1 << 32)))
    for position in HALVES.get(name, ()):
        row, block = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, number - 1))
        bits = np.array([data.draw(HALF)], "<u2").view(np.uint8)
        blocks[row, block, position : position + 2] = bits
    assert_same_bits(imported(kind, blocks), reference(kind, blocks))


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("fill", [0, 255, 0x55, 0xAA])
def test_uniform_blocks(name: str, fill: int) -> None:
    """Test blocks of equal codes and equal sub-scales, the least and the greatest among others."""
    kind = TYPES[name]
    blocks = random_blocks(kind, 2, 512, seed=1)
    scales = [(position, blocks[..., position : position + 2].copy()) for position in HALVES.get(name, ())]
    blocks[:] = fill
    for position, values in scales:
        blocks[..., position : position + 2] = values
    assert_same_bits(imported(kind, blocks), reference(kind, blocks))


@pytest.mark.parametrize("name", [name for name in TYPES if name in HALVES])
def test_zero_scales(name: str) -> None:
    kind = TYPES[name]
    blocks = random_blocks(kind, 1, 512, seed=2)
    for position in HALVES[name]:
        blocks[..., position : position + 2] = 0
    values = imported(kind, blocks)
    assert not values.any()
    assert_same_bits(values, reference(kind, blocks))


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00])
@pytest.mark.parametrize("name", HALVES)
def test_scales_that_are_not_finite_stay_visible(name: str, bits: int) -> None:
    kind = TYPES[name]
    for position in HALVES[name]:
        blocks = random_blocks(kind, 1, 512, seed=3)
        blocks[0, 0, position : position + 2] = np.array([bits], "<u2").view(np.uint8)
        values = imported(kind, blocks)
        assert not np.isfinite(values[0, : kind.weights]).all()
        assert np.isfinite(values[0, kind.weights :]).all()


@pytest.mark.parametrize("name", TYPES)
def test_results_do_not_share_memory_with_the_file(name: str) -> None:
    kind = TYPES[name]
    blocks = random_blocks(kind, 2, 512, seed=4)
    arrays = home_parts(name, blocks).values() if name in HOMES else [float_rows(name, blocks)]
    for array in arrays:
        assert not np.shares_memory(array, blocks)
        assert array.flags.writeable


PLAIN = {"codes": ("u1", 1), "scales": ("f2", 32)}
SUPER = {"codes": ("u1", 1), "scales": ("u1", 32), "minimums": ("u1", 32)}
SUPER |= {"super_scales": ("f2", 256), "super_minimums": ("f2", 256)}
PARTS = {
    "lin4": PLAIN,
    "lin8": PLAIN,
    "min4": {**PLAIN, "minimums": ("f2", 32)},
    "k4": SUPER,
    "k8": SUPER,
    "iq4": PLAIN,
    "iq4k": {"codes": ("u1", 1), "scales": ("i1", 32), "super_scales": ("f2", 256)},
}
"""Type of each part of a format, and the number of columns that share a value."""


@pytest.mark.parametrize("name", HOMES)
def test_parts_have_the_types_of_their_format(name: str) -> None:
    parts = home_parts(name, random_blocks(TYPES[name], 3, 512, seed=5))
    found = {part: (values.dtype, values.shape) for part, values in parts.items()}
    assert found == {part: (np.dtype(kind), (3, 512 // size)) for part, (kind, size) in PARTS[HOMES[name]].items()}


def test_types_are_those_of_gguf_py() -> None:
    sizes = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for number, kind in BLOCK_TYPES.items():
        assert gguf.GGMLQuantizationType(number).name.lower() == kind.name
        assert sizes[number] == (kind.weights, kind.block_bytes)
    others = {int(kind): kind.name for kind in gguf.GGMLQuantizationType if int(kind) not in BLOCK_TYPES}
    assert others.items() <= OTHER_TYPES.items()
