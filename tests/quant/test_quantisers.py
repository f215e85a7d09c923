"""Compiled quantisers and their NumPy references agree bit for bit and reach the required quality."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.errors import FormatError
from quant.formats import q4, q6
from quant.quantisers import quantise, reference

REPOSITORY = Path(__file__).resolve().parents[2]
QUANTISE = """
import json, sys
import numpy as np
from quant.quantisers import quantise
from quant.quantisers.code_store import CODE_STORE
quantise(sys.argv[1], np.ones((16, 32), np.float32), 32)
print(json.dumps({"numba": "numba" in sys.modules, "kept": sorted(CODE_STORE.load())}))
"""


def awkward_rows(seed: int = 0) -> np.ndarray:
    """Return (37, 256): normal, heavy-tailed, constant, zero, one-weight, huge, tiny, subnormal, one-sided rows."""
    random = np.random.default_rng(seed)
    values = random.standard_normal((37, 256)).astype(np.float32)
    values[4:8] = random.standard_t(2, (4, 256))
    values[8] = 0
    values[9] = 0.5
    values[10] = 0
    values[10, 77] = -3
    values[11, 32:64] = 0
    values[12] *= 1e29
    values[13] *= 1e-20
    values[14] *= 1e-36
    values[15] = np.float32(1e-45)
    values[16] = np.abs(values[16])
    values[17] = -np.abs(values[17])
    values[18, :32] *= 1000
    values[19] = np.where(random.random(256) < 0.5, -1, 1)
    values[20] = np.round(values[20])
    values[21, ::2] = -0.0
    return values


@pytest.mark.parametrize(("name", "group_size"), reference.METHODS)
@pytest.mark.parametrize("seed", [0, 1])
def test_compiled_equals_reference(name: str, group_size: int, seed: int) -> None:
    values = awkward_rows(seed)
    if name.startswith("lin"):
        values[12] = 1  # too large for float16 scales; another test covers it
    packed, errors = quantise(name, values, group_size)
    expected, expected_errors = reference.quantise(name, values, group_size)
    assert list(packed.parts) == list(expected.parts)
    for part, array in packed.parts.items():
        assert np.array_equal(array, expected.parts[part]), part
    assert np.array_equal(errors, expected_errors)
    formats.check_packed(packed)


@pytest.mark.parametrize(("name", "group_size"), reference.METHODS)
def test_reported_error_is_the_real_one(name: str, group_size: int) -> None:
    values = np.random.default_rng(3).standard_normal((20, 256)).astype(np.float32)
    packed, errors = quantise(name, values, group_size)
    real = ((formats.dequantise(packed).astype(np.float64) - values) ** 2).sum(axis=1)
    assert np.allclose(errors, real, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("name", "group_size"), reference.METHODS)
def test_rows_are_independent(name: str, group_size: int) -> None:
    values = np.random.default_rng(4).standard_normal((48, 128)).astype(np.float32)
    whole, errors = quantise(name, values, group_size)
    for start in (0, 16, 32):
        piece, piece_errors = quantise(name, values[start : start + 16], group_size)
        for part, array in piece.parts.items():
            assert np.array_equal(array, whole.parts[part][start // 16 : start // 16 + 1])
        assert np.array_equal(piece_errors, errors[start : start + 16])


@pytest.mark.parametrize(
    ("name", "group_size", "decibels"),
    [
        ("q4", 32, 22.9),
        ("q6", 32, 33.8),
        ("q8", 32, 45.5),
        ("lin4", 32, 22.0),
        ("lin4", 64, 21.0),
        ("lin4", 128, 20.2),
        ("lin8", 32, 45.5),
    ],
)
def test_quality_on_gaussian_weights(name: str, group_size: int, decibels: float) -> None:
    values = np.random.default_rng(5).standard_normal((64, 1024)).astype(np.float32)
    _, errors = quantise(name, values, group_size)
    assert 10 * np.log10((values.astype(np.float64) ** 2).sum() / errors.sum()) >= decibels


def test_q4_keeps_what_it_can_represent() -> None:
    random = np.random.default_rng(6)
    codes = random.integers(0, 16, (16, 64), dtype=np.uint8)
    codes[:, ::32] = 0  # each group uses the end of its table
    scales = np.full((16, 2), 63, np.int8)
    bits = np.zeros((16, 2), np.uint8)
    exact = formats.dequantise(q4.pack(codes, scales, bits, np.ones(16, np.float32)))
    packed, errors = quantise("q4", exact, 32)
    assert np.allclose(formats.dequantise(packed), exact, rtol=1e-5)
    assert errors.max() <= 1e-9 * (exact**2).sum()


def test_q6_keeps_what_it_can_represent() -> None:
    random = np.random.default_rng(6)
    codes = random.integers(-31, 32, (16, 64), dtype=np.int8)
    codes[:, ::32] = -32  # each group reaches the end of the codes
    scales = random.choice([-127, 127], (16, 2)).astype(np.int8)
    exact = q6.pack(codes, scales, np.ones(16, np.float32))
    packed, errors = quantise("q6", formats.dequantise(exact), 32)
    for part, array in packed.parts.items():
        assert np.array_equal(array, exact.parts[part]), part
    assert not errors.any()


def test_dense_formats_keep_every_bit() -> None:
    values = np.random.default_rng(7).standard_normal((18, 64)).astype(np.float32)
    packed, errors = quantise("f32", values, 0)
    assert np.array_equal(formats.dequantise(packed), values)
    assert not errors.any()
    rounded = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    packed, _ = quantise("bf16", rounded, 0)
    assert np.array_equal(formats.dequantise(packed), rounded)
    with pytest.raises(FormatError, match="which are not bfloat16"):
        quantise("bf16", values, 0)


def test_linear_scales_beyond_float16_are_refused() -> None:
    values = np.full((16, 64), 1e7, np.float32)
    for name in ("lin4", "lin8"):
        with pytest.raises(FormatError, match="scales as float16"):
            quantise(name, values, 32)


def test_unknown_format_is_refused() -> None:
    with pytest.raises(FormatError, match="unknown tensor format 'q3'"):
        quantise("q3", np.zeros((16, 32), np.float32), 32)


def test_codebook_is_close_to_its_own_lloyd_update() -> None:
    """Check that the least-squares codebook for the chosen codes, scales and tables differs by at most 2.

    The table comes from Lloyd's iteration (IEEE Trans. Inf. Theory 28, 1982) on groups with a searched scale.
    """
    random = np.random.default_rng(8)
    tails = random.standard_t(8, (32, 1024)) / np.sqrt(8 / 6)
    values = np.concatenate([random.standard_normal((80, 1024)), tails]).astype(np.float32)
    codes, scales, bits, row_scales = q4.unpack(quantise("q4", values, 32)[0])
    scale = np.repeat(scales * row_scales[:, None], 32, axis=1).astype(np.float64)
    target = values - scale * (q4.SHIFT * np.repeat(bits, 32, axis=1).astype(np.float64))
    products = np.bincount(codes.ravel(), (scale * target).ravel(), 16)
    squares = np.bincount(codes.ravel(), (scale * scale).ravel(), 16)
    update = products / squares
    assert np.abs(update - q4.CODEBOOK).max() < 2
    assert 0.3 < bits.mean() < 0.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q4", "q8", "lin4"])
def test_only_the_code_of_one_format_is_compiled_and_kept(name: str, tmp_path: Path) -> None:
    loops = {"q4": {"quant_q4_search", "quant_q4_encode"}, "q8": {"quant_q8_encode"}}
    first, second = (run_quantiser(name, tmp_path / "cache") for _ in range(2))
    assert first["kept"] == sorted(loops.get(name, {"quant_lin_search", "quant_lin_encode"}))
    assert (first["numba"], second["numba"]) == (True, False)
    assert first["kept"] == second["kept"]


@pytest.mark.slow
def test_quantisers_work_where_no_compiled_code_can_be_kept(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder can be made below this")
    for _ in range(2):
        assert run_quantiser("q8", blocked / "cache") == {"numba": True, "kept": []}


def run_quantiser(name: str, cache: Path) -> Any:
    """Quantise in a new process. Return whether it imported Numba, and the symbols in its cache."""
    environment = os.environ | {"QWCHAT_CACHE": str(cache), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", QUANTISE, name], env=environment, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)
