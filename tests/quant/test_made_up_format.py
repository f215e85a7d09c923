"""Policy, container, quantisers and kernels need only the record of a format: shown with invented formats."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quant import formats
from quant.container import open_model
from quant.errors import ContainerError, FormatError
from quant.families import parse_config
from quant.formats import FORMATS, IntegerFormat
from quant.policy import ConversionSpec, conversion_spec, plan_tensors
from quant.quantisers import quantise, reference
from qwchat.cpu.weights import Weights
from qwchat.errors import ModelError
from tests.clocks import PATIENCE_SECONDS
from tests.cpu.random_models import reference as reference_of
from tests.quant.checkpoints import CONFIG, make_checkpoint, random_tensors
from tests.quant.converting import run
from tests.quant.made_up_format import CURVED, MADE_UP, SIX, THREE

REPOSITORY = Path(__file__).resolve().parents[2]
SHAPES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 1,
    "vocab_size": 333,
}


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    for fmt in MADE_UP:
        monkeypatch.setitem(FORMATS, fmt.name, fmt)


@pytest.mark.parametrize("fmt", MADE_UP, ids=lambda fmt: fmt.name)
def test_a_record_decides_layout_and_arithmetic(fmt: IntegerFormat) -> None:
    random = np.random.default_rng(1)
    group_size = fmt.group_sizes[0]
    shape, groups = (21, 128), (21, 128 // group_size)
    codes = random.integers(0, fmt.largest_code + 1, shape).astype(np.uint8)
    scales = random.integers(-100, 100, groups).astype(fmt.scale_dtype)
    zeros = random.integers(0, fmt.largest_code + 1, groups).astype(np.uint8) if fmt.stores_zeros else None
    rows = random.standard_normal(21).astype(np.float32) if fmt.row_scales else None
    packed = fmt.pack(codes, scales, group_size, zeros=zeros, row_scales=rows)
    formats.check_packed(packed)
    assert np.array_equal(fmt.codes(packed), codes)
    values = formats.dequantise(packed)
    assert np.array_equal(formats.dequantise_rows(packed, [20, 3]), values[[20, 3]])
    for row, column in [(0, 0), (3, 5), (15, 127), (20, 71)]:
        level = int(codes[row, column]) if fmt.table is None else fmt.table[codes[row, column]]
        zero = fmt.zero if zeros is None else int(zeros[row, column // group_size])
        scale = np.float32(scales[row, column // group_size])
        assert values[row, column] == (scale if rows is None else rows[row] * scale) * np.float32(level - zero)


@pytest.mark.parametrize("fmt", [SIX, THREE], ids=lambda fmt: fmt.name)
def test_the_linear_quantiser_packs_by_the_record(fmt: IntegerFormat) -> None:
    values = np.random.default_rng(2).standard_normal((37, 256)).astype(np.float32)
    packed, errors = quantise(fmt.name, values, fmt.group_sizes[0])
    expected, expected_errors = reference.quantise(fmt.name, values, fmt.group_sizes[0])
    assert list(packed.parts) == list(expected.parts)
    assert all(np.array_equal(part, expected.parts[name]) for name, part in packed.parts.items())
    assert np.array_equal(errors, expected_errors)
    decibels = 10 * np.log10((values.astype(np.float64) ** 2).sum() / errors.sum())
    assert decibels > 6.02 * fmt.bits - 4


def test_policy_knows_the_format_by_its_record() -> None:
    assert conversion_spec("six") == ConversionSpec("six", 64)
    assert conversion_spec("six", group_size=32) == ConversionSpec("six", 32)
    assert conversion_spec(bits=6) == ConversionSpec("q6", 32)
    assert conversion_spec(bits=6, group_size=64) == ConversionSpec("six", 64)
    config = parse_config({**CONFIG, **SHAPES})
    names = random_tensors(config)
    plans = plan_tensors(config, conversion_spec("three"), dict.fromkeys(names, "bf16"), dict.fromkeys(names, 0))
    assert {(each.format, each.group_size, each.zeros) for each in plans} == {("three", 32, True), ("vector", 0, False)}
    weight = next(each for each in plans if each.name.endswith("gate_proj.weight"))
    assert weight.bits_per_weight == THREE.effective_bits(32) == 4 + (16 + 8) / 32


@pytest.mark.slow
@pytest.mark.parametrize("fmt", MADE_UP, ids=lambda fmt: fmt.name)
def test_the_portable_kernels_run_the_format(fmt: IntegerFormat, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "source", config_overrides=SHAPES)
    ids = np.random.default_rng(3).integers(0, SHAPES["vocab_size"], 40)
    np.save(tmp_path / "ids.npy", ids)
    arguments = (fmt.name, *(str(tmp_path / name) for name in ("source", "model", "ids.npy", "logits.npz")))
    ran = subprocess.run(
        [sys.executable, "-m", "tests.quant.made_up_format", *arguments],
        cwd=REPOSITORY,
        env=os.environ | {"QWCHAT_SIMD": "portable"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_SECONDS,  # it may compile the kernels
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    model, logits = open_model(tmp_path / "model"), np.load(tmp_path / "logits.npz")
    assert {model.tensor(name).format for name in model.names} == {fmt.name, "vector"}
    expected = reference_of(model).logits(ids.tolist())
    errors = np.abs(logits["made_up"] - expected).mean(axis=1) / np.abs(expected).mean()
    # An activation near a rounding boundary may round to the other side, which affects about half of the tokens.
    assert np.quantile(errors, 0.25) < 1e-5
    assert errors.max() < 2e-2
    assert np.array_equal(logits["made_up"], logits["one_by_one"])
    if fmt is CURVED:
        assert "known" not in logits
    else:
        assert np.array_equal(logits["made_up"], logits["known"])


def test_a_program_without_the_record_refuses_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = make_checkpoint(tmp_path / "source", config_overrides=SHAPES)
    run(source, tmp_path / "model", preset="curved")
    assert open_model(tmp_path / "model").preset == "curved"
    monkeypatch.delitem(FORMATS, "curved")
    with pytest.raises(ContainerError, match="unknown tensor format 'curved'; known formats: q4, q6, q8"):
        open_model(tmp_path / "model")


def test_the_engine_refuses_a_format_without_a_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "unheard", replace(CURVED, name="unheard", kernel=None))
    make_checkpoint(tmp_path / "source", config_overrides=SHAPES)
    run(tmp_path / "source", tmp_path / "model", preset="unheard")
    weights = Weights(open_model(tmp_path / "model"))
    refused = r"tensor lm_head\.weight has the format 'unheard', which the kernels cannot run; convert the model"
    with pytest.raises(ModelError, match=refused):
        weights.matrix("lm_head.weight")


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"bits": 9}, "1 to 8 bits"),
        ({"group_sizes": ()}, "there is a group size"),
        ({"table": tuple(range(64))}, "only codes of 4 bits"),
        ({"bits": 4, "zero": 1, "table": (1, 2)}, "a level for each code"),
        ({"bits": 4, "zero": 1, "table": (*range(15), 256)}, r"levels lie within 0\.\.255"),
        ({"zero": 64}, "the zero point lies within the levels"),
        ({"bits": 4, "zero": 1, "table": tuple(range(0, 32, 2))}, "the zero point is a level"),
        ({"minimum_sign": 1, "zero": 0}, "an integer times a scale"),
        ({"super_scales": True}, "an integer times a scale"),
        ({"minimum_sign": 1}, "minimums exclude zero points"),
        ({"super_scales": True, "scale": "float16"}, "super scales multiply byte scales"),
        ({"super_scales": True, "row_scales": True}, "super scales exclude row scales"),
        ({"shift": 1}, "needs int8 scales"),
        ({"scale": "int8", "shift": 1, "allows_zeros": True}, "excludes zero points"),
        ({"stores_zeros": True}, "only where they are allowed"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(changes: dict[str, Any], rule: str) -> None:
    plain = {"name": "odd", "quantiser": SIX.quantiser, "bits": 6, "group_sizes": (32,), "scale": "uint8", "zero": 32}
    with pytest.raises(ValueError, match=f"the record of format odd breaks a rule: .*{rule}"):
        IntegerFormat(**(plain | changes))


def test_tensors_that_do_not_fit_a_record_are_refused() -> None:
    with pytest.raises(FormatError, match=r"supports the group sizes \(64,\), not 32"):
        formats.layout("curved", (16, 64), 32)
    with pytest.raises(FormatError, match="format six has no zero points"):
        formats.layout("six", (16, 64), 64, zeros=True)
    codes, scales = np.full((1, 64), 8, np.uint8), np.ones((1, 2), np.float16)
    with pytest.raises(FormatError, match=r"three codes must be 0\.\.7"):
        THREE.pack(codes, scales, 32)
    with pytest.raises(FormatError, match="curved row scales"):
        CURVED.pack(codes, np.ones((1, 1), np.int8), 64)
