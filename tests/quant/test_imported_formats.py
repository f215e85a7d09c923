"""Formats of other programs: where their bytes are, and their values, element by element."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.errors import ArgumentError, FormatError
from quant.families import parse_config
from quant.formats import FORMATS, GroupedFormat, IntegerFormat, PackedTensor
from quant.formats.imported import IQ4_LEVELS, K4, K8, MIN4
from quant.policy import bit_choices, conversion_spec, group_size_choices
from quant.quantisers import quantise
from quant.sources import QuantisedRows
from quant.verification import verify
from tests.quant.checkpoints import CONFIG, random_tensors
from tests.quant.converting import run
from tests.quant.imported_parts import IMPORTED, Parts, packed_of, random_parts
from tests.quant.sources.memory import MemorySource

BITS = {"min4": 5.0, "k4": 4.625, "k8": 8.625, "iq4": 4.5, "iq4k": 4.3125}
SHAPES = [(1, 256), (17, 256), (33, 768)]


def expected_value(fmt: GroupedFormat, parts: Parts, row: int, column: int) -> np.float32:
    """Return a value as gguf-py computes it: float32 products, then a float32 sum."""
    code, group, block = int(parts["codes"][row, column]), column // 32, column // 256
    scale = np.float32(parts["scales"][row, group])
    if fmt.super_scales:
        scale = np.float32(parts["super_scales"][row, block]) * scale
    value = scale * np.float32(code if fmt.table is None else IQ4_LEVELS[code])
    if fmt is MIN4:
        value += np.float32(parts["minimums"][row, group])
    elif fmt in (K4, K8):
        value -= np.float32(parts["super_minimums"][row, block]) * np.float32(parts["minimums"][row, group])
    return np.float32(value)


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_values_and_bytes(fmt: GroupedFormat, shape: tuple[int, int]) -> None:
    parts = random_parts(fmt, shape)
    packed = packed_of(fmt, parts)
    formats.check_packed(packed)
    values = formats.dequantise(packed)
    assert np.array_equal(values, formats.dequantise_parts(fmt.name, parts, 32))
    random = np.random.default_rng(1)
    for _ in range(60):
        row, column = int(random.integers(shape[0])), int(random.integers(shape[1]))
        tile, lane = divmod(row, 16)
        if fmt is K8:
            code = packed.parts["codes"][tile, column // 4, lane, column % 4]
        else:
            byte = packed.parts["codes"][tile, column // 8, lane, column % 4]
            code = byte & 15 if column % 8 < 4 else byte >> 4
        assert code == parts["codes"][row, column]
        for name in parts.keys() - {"codes"}:
            width = 256 if name.startswith("super_") else 32
            assert packed.parts[name][tile, column // width, lane] == parts[name][row, column // width]
        assert values[row, column] == expected_value(fmt, parts, row, column)


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
def test_unpacking_returns_the_parts(fmt: GroupedFormat) -> None:
    parts = random_parts(fmt, (21, 512), seed=2)
    packed = packed_of(fmt, parts)
    plain = fmt.plain_parts(packed)
    assert plain.keys() == parts.keys()
    for name, part in parts.items():
        assert plain[name].dtype == part.dtype
        assert np.array_equal(plain[name], part)
    whole = PackedTensor(fmt.name, (32, 512), 32, packed.parts)
    assert not formats.dequantise(whole)[21:].any()
    assert np.array_equal(formats.dequantise_rows(packed, [20, 3]), formats.dequantise(packed)[[20, 3]])


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
def test_the_bits_are_those_of_the_parts(fmt: GroupedFormat) -> None:
    assert fmt.effective_bits(32) == BITS[fmt.name]
    assert packed_of(fmt, random_parts(fmt, (16, 512))).nbytes == BITS[fmt.name] / 8 * 16 * 512


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
def test_float_values_cannot_be_converted_to_them(fmt: GroupedFormat) -> None:
    assert not isinstance(fmt, IntegerFormat)
    with pytest.raises(FormatError, match=f"format {fmt.name} cannot be made from float values"):
        quantise(fmt.name, np.ones((16, 256), np.float32), 32)
    with pytest.raises(ArgumentError, match=f"unknown preset '{fmt.name}'"):
        conversion_spec(fmt.name)
    assert group_size_choices() == [32, 64, 128]
    assert bit_choices() == [4, 6, 8]


@pytest.mark.parametrize("fmt", IMPORTED, ids=lambda fmt: fmt.name)
def test_a_source_keeps_them(fmt: GroupedFormat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG | {"hidden_size": 256, "intermediate_size": 256}
    contents: dict[str, Any] = dict(random_tensors(parse_config(config)))
    matrices = [name for name, values in contents.items() if values.ndim == 2]
    for seed, name in enumerate(matrices):
        contents[name] = QuantisedRows(fmt.name, 32, random_parts(fmt, contents[name].shape, seed))
    monkeypatch.setattr("quant.conversion.open_source", lambda path: MemorySource(config, contents))
    monkeypatch.setattr("quant.tensor_pipeline.CHUNK_WEIGHTS", 10_000)
    run(tmp_path, tmp_path / "model")
    model = open_model(tmp_path / "model")
    assert verify(model) == {}
    for name in matrices:
        packed = model.tensor(name)
        assert model.manifest["tensors"][name]["relative_error"] == 0
        plain = fmt.plain_parts(packed)
        assert all(np.array_equal(plain[part], values) for part, values in contents[name].parts.items())
        assert np.array_equal(formats.dequantise(packed), contents[name].dequantise())


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = random_parts(K4, (3, 256))
    with pytest.raises(FormatError, match="k4 needs a multiple of 256 columns, not 288"):
        formats.layout("k4", (16, 288), 32)
    formats.layout("min4", (16, 288), 32)
    with pytest.raises(FormatError, match="min4 has no zero points"):
        formats.layout("min4", (16, 256), 32, zeros=True)
    with pytest.raises(FormatError, match=r"k4 has the parts .*'super_minimums'"):
        packed_of(K4, {name: part for name, part in parts.items() if name != "super_minimums"})
    with pytest.raises(FormatError, match=r"k4 super_scales must have the shape \(3, 1\)"):
        packed_of(K4, parts | {"super_scales": parts["super_scales"][:, :0]})
    with pytest.raises(FormatError, match=r"k8 codes must be 0\.\.31"):
        packed_of(K8, parts | {"codes": np.full((3, 256), 32, np.uint8)})
    with pytest.raises(FormatError, match="bf16 does not store codes"):
        formats.dequantise_parts("bf16", parts, 32)


def test_every_imported_format_is_listed() -> None:
    assert {name for name, fmt in FORMATS.items() if fmt.quantiser is None} == {fmt.name for fmt in IMPORTED}
