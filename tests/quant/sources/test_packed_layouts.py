"""Layouts of packed checkpoints: every code, zero point and value of a matrix, compared with independent packers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant import formats
from quant.errors import CheckpointError
from quant.sources import QuantisedRows
from quant.sources.packed import PackedCheckpoint, open_packed
from tests.quant.checkpoints import write_json, write_safetensors
from tests.quant.sources.packing import Entries, Form, Grid, awq, compressed, gptq, random_grid
from tests.tiers import count

NAME = "m.weight"


def open_matrix(folder: Path, form: Form, entries: Entries, **quantisation: Any) -> PackedCheckpoint:
    """Write and open a file with one module, whose config.json has nothing but the settings."""
    write_json(folder / "config.json", {"quantization_config": {**form.config, **quantisation}})
    write_safetensors(folder / "model.safetensors", entries)
    return open_packed(folder)


def check_rows(source: PackedCheckpoint, grid: Grid, home: int, ranges: list[tuple[int, int]]) -> None:
    """Compare row ranges with the packed matrix. `home` is the group size in the model folder, or 0 for float rows."""
    info = source.tensors[NAME]
    assert info.shape == grid.codes.shape
    assert info.dtype == f"int{grid.bits}"
    assert info.group_size == home
    assert info.home == (f"lin{grid.bits}" if home else "")
    for start, stop in ranges:
        rows = source.read(NAME, start, stop)
        assert isinstance(rows, QuantisedRows) == bool(home)
        if isinstance(rows, QuantisedRows):
            groups = grid.groups[::home]
            assert np.array_equal(rows.parts["codes"], grid.codes[start:stop])
            assert rows.parts["scales"].dtype == np.float16
            assert np.array_equal(rows.parts["scales"].astype(np.float32), grid.scales[start:stop, groups])
            assert ("zeros" in rows.parts) == info.zeros
            if info.zeros:
                assert np.array_equal(rows.parts["zeros"], grid.zeros[start:stop, groups])
            values = rows.dequantise()
            packed = formats.find_format(info.home)
            assert isinstance(packed, formats.IntegerFormat)
        else:
            values = rows
        assert values.dtype == np.float32
        assert np.array_equal(values, grid.values[start:stop])


@st.composite
def cases(draw: st.DrawFn) -> tuple[Form, Grid, Entries, list[tuple[int, int]]]:
    method = draw(st.sampled_from(["gptq", "awq", "compressed-tensors"]))
    bits = 4 if method == "awq" else draw(st.sampled_from([4, 8]))
    per_word = 32 // bits
    rows = draw(st.integers(1, 40)) if method == "compressed-tensors" else per_word * draw(st.integers(1, 6))
    columns = draw(st.sampled_from([32, 64, 96, 128, 160, 256, 384, 896]))
    if method == "compressed-tensors":
        columns = draw(st.sampled_from([columns, draw(st.integers(1, 300))]))
    size = draw(st.sampled_from([0, 8, 16, 32, 48, 64, 96, 128, 256, 1024]))
    symmetric = method != "awq" and draw(st.booleans())
    version = draw(st.sampled_from([1, 2]))
    kind = draw(st.sampled_from(["f16", "bf16", "f32"]))
    form = Form("case", method, bits, size, symmetric, version, kind)
    grid = form.grid(np.random.default_rng(draw(st.integers(0, 1 << 30))), (rows, columns))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=4)))
    return form, grid, form.pack("m", grid), [(0, rows), *zip([0, *cuts], [*cuts, rows], strict=True)]


def home_of(grid: Grid) -> int:
    """Return the largest group size of a format within which the group never changes, found by trying all columns."""
    if not np.array_equal(grid.scales.astype(np.float16).astype(np.float32), grid.scales):
        return 0
    columns = grid.codes.shape[1]
    for size in (128, 64, 32):
        starts = range(0, columns, size)
        if columns % size == 0 and all(len(set(grid.groups[start : start + size].tolist())) == 1 for start in starts):
            return size
    return 0


@given(case=cases())
@settings(max_examples=count(400, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_codes_zero_points_and_values(case: Any, tmp_path: Path) -> None:
    form, grid, entries, ranges = case
    with open_matrix(tmp_path, form, entries) as source:
        check_rows(source, grid, home_of(grid), ranges)


@pytest.mark.parametrize(
    ("size", "columns", "home"),
    [
        (32, 96, 32),
        (64, 192, 64),
        (128, 896, 128),
        (128, 29_696, 128),
        (0, 4864, 128),
        (0, 96, 32),
        (256, 1024, 128),
        (1024, 2048, 128),
        (1024, 896, 128),
        (64, 96, 32),
        (192, 384, 64),
        (16, 96, 0),
        (48, 96, 0),
    ],
)
@pytest.mark.parametrize("method", ["gptq", "awq", "compressed-tensors"])
def test_group_sizes(tmp_path: Path, method: str, size: int, columns: int, home: int) -> None:
    form = Form("case", method, 4, size)
    grid = form.grid(np.random.default_rng(size + columns), (16, columns))
    with open_matrix(tmp_path, form, form.pack("m", grid)) as source:
        check_rows(source, grid, home, [(0, 16), (3, 11)])
        expected = [] if home else [f"the codes of tensor m.weight cannot be kept: no format has groups of {size}"]
        assert [notice.partition(" in ")[0] for notice in source.notices] == expected


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("label", ["gptq", "gptq_v2", ...])
@pytest.mark.parametrize("version", [1, 2])
def test_the_data_of_a_symmetric_file_reveal_its_version(tmp_path: Path, version: int, label: Any, bits: int) -> None:
    form = Form("case", "gptq", bits, symmetric=True)
    grid = form.grid(np.random.default_rng(1), (32, 64))
    entries = gptq("m", grid, version=version)
    word = np.frombuffer(entries["m.qzeros"][2], np.uint32)[0]
    assert word == {(1, 4): 0x77777777, (2, 4): 0x88888888, (1, 8): 0x7F7F7F7F, (2, 8): 0x80808080}[version, bits]
    options = {} if label is ... else {"checkpoint_format": label}
    with open_matrix(tmp_path, form, entries, **options) as source:
        check_rows(source, grid, 32, [(0, 32)])


@pytest.mark.parametrize("bits", [4, 8])
def test_zero_points_that_contradict_a_symmetric_file_are_refused(tmp_path: Path, bits: int) -> None:
    form = Form("case", "gptq", bits, symmetric=True)
    grid = random_grid(np.random.default_rng(1), (32, 64), bits, symmetric=True)
    grid.zeros[5, 1] -= 1
    with (
        open_matrix(tmp_path, form, gptq("m", grid)) as source,
        pytest.raises(CheckpointError, match=r"m\.qzeros has zero points other than (8|128), but quantization_config"),
    ):
        source.tensors  # noqa: B018


@pytest.mark.parametrize(("bits", "zero"), [(4, 16), (4, 0), (8, 0)])
def test_ambiguous_zero_points_of_version_1_are_refused(tmp_path: Path, bits: int, zero: int) -> None:
    form = Form("case", "gptq", bits)
    grid = random_grid(np.random.default_rng(1), (32, 64), bits, zeros=(1, 15))
    grid.zeros[5, 1] = zero
    largest = (1 << bits) - 1
    message = rf"m\.qzeros stores the zero point {largest}, which stands for 0 or {largest + 1} in GPTQ version 1; if"
    with (
        open_matrix(tmp_path, form, gptq("m", grid)) as source,
        pytest.raises(CheckpointError, match=message),
    ):
        source.tensors  # noqa: B018


@pytest.mark.parametrize("bits", [4, 8])
def test_all_zero_points_of_version_2(tmp_path: Path, bits: int) -> None:
    form = Form("case", "gptq", bits, version=2)
    grid = random_grid(np.random.default_rng(1), (256, 64), bits)
    grid.zeros[:, 0] = np.arange(256) % (1 << bits)
    with open_matrix(tmp_path, form, gptq("m", grid, version=2)) as source:
        check_rows(source, grid, 32, [(0, 256), (100, 103)])


def with_order(grid: Grid, groups: np.ndarray) -> Grid:
    return Grid(grid.bits, grid.codes, grid.scales, grid.zeros, groups, grid.scale_type)


def pack_ordered(method: str, grid: Grid) -> Entries:
    return gptq("m", grid) if method == "gptq" else compressed("m", grid, g_idx=True)


ORDERED = [("gptq", {"desc_act": True}), ("compressed-tensors", {})]


@pytest.mark.parametrize(("method", "options"), ORDERED)
def test_activation_order_gives_float_rows_in_natural_order(
    tmp_path: Path, method: str, options: dict[str, Any]
) -> None:
    random = np.random.default_rng(1)
    grid = random_grid(random, (32, 128), zeros=(1, 15))
    grid = with_order(grid, random.permutation(grid.groups))
    with open_matrix(tmp_path, Form("case", method), pack_ordered(method, grid), **options) as source:
        check_rows(source, grid, 0, [(0, 32), (8, 9)])
        assert source.notices == [
            "the codes of tensor m.weight cannot be kept: the groups of columns are in activation order"
        ]


@pytest.mark.parametrize(("method", "options"), ORDERED)
def test_groups_in_another_order_are_kept(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    grid = random_grid(np.random.default_rng(1), (32, 128), group_size=32, zeros=(1, 15))
    grid = with_order(grid, np.repeat([2, 0, 3, 1], 32))
    with open_matrix(tmp_path, Form("case", method), pack_ordered(method, grid), **options) as source:
        check_rows(source, grid, 32, [(0, 32), (8, 9)])


def test_an_order_of_minus_1_is_none(tmp_path: Path) -> None:
    grid = random_grid(np.random.default_rng(1), (32, 128))
    entries = compressed("m", with_order(grid, np.full(128, -1)), g_idx=True)
    with open_matrix(tmp_path, Form("case", "compressed-tensors"), entries) as source:
        check_rows(source, grid, 32, [(0, 32)])


@pytest.mark.parametrize("wrong", [-1, 4])
@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_groups_that_do_not_exist_are_refused(tmp_path: Path, method: str, wrong: int) -> None:
    grid = random_grid(np.random.default_rng(1), (32, 128), zeros=(1, 15))
    groups = grid.groups.copy()
    groups[7] = wrong
    with (
        open_matrix(tmp_path, Form("case", method), pack_ordered(method, with_order(grid, groups))) as source,
        pytest.raises(CheckpointError, match=r"g_idx names groups other than 0\.\.3; download"),
    ):
        source.tensors  # noqa: B018


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
def test_an_order_that_is_missing_is_refused(tmp_path: Path, method: str) -> None:
    form = Form("case", method)
    grid = random_grid(np.random.default_rng(1), (32, 128), zeros=(1, 15))
    entries = gptq("m", grid, g_idx=False) if method == "gptq" else compressed("m", grid)
    options: dict[str, Any] = {"desc_act": True}
    if method != "gptq":
        options = form.config
        options["config_groups"]["group_0"]["weights"]["actorder"] = "group"
    with (
        open_matrix(tmp_path, form, entries, **options) as source,
        pytest.raises(CheckpointError, match=r"g_idx is missing, which activation order"),
    ):
        source.tensors  # noqa: B018


def test_a_file_without_order_tensors_is_read(tmp_path: Path) -> None:
    grid = random_grid(np.random.default_rng(1), (32, 128), zeros=(1, 15))
    with open_matrix(tmp_path, Form("case", "gptq"), gptq("m", grid, g_idx=False)) as source:
        check_rows(source, grid, 32, [(0, 32)])


@pytest.mark.parametrize("kind", ["bf16", "f32"])
@pytest.mark.parametrize("scale", [2.0**-26, 98_304.0, 1.0])
def test_scales_that_float16_does_not_hold(tmp_path: Path, kind: str, scale: float) -> None:
    grid = random_grid(np.random.default_rng(1), (16, 64), symmetric=True, scale_type=kind)
    grid.scales[:] = np.where(grid.scales > 0, np.float32(0.5), np.float32(-0.25))
    grid.scales[9, 1] = scale
    form = Form("case", "compressed-tensors", symmetric=True, scale_type=kind)
    with open_matrix(tmp_path, form, form.pack("m", grid)) as source:
        check_rows(source, grid, 32 if scale == 1 else 0, [(0, 16), (9, 10)])
        expected = ["the codes of tensor m.weight cannot be kept: float16 does not hold the scales exactly"]
        assert source.notices == ([] if scale == 1 else expected)


@pytest.mark.parametrize("shape_type", ["I32", "I64"])
def test_both_types_of_weight_shape(tmp_path: Path, shape_type: str) -> None:
    grid = random_grid(np.random.default_rng(1), (13, 45), group_size=45)
    entries = compressed("m", grid, shape_type=shape_type)
    with open_matrix(tmp_path, Form("case", "compressed-tensors", group_size=45), entries) as source:
        check_rows(source, grid, 0, [(0, 13)])


def test_rows_are_new_memory_and_ranges_are_checked(tmp_path: Path) -> None:
    for number, (method, bits) in enumerate([("gptq", 8), ("awq", 4), ("compressed-tensors", 8)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        form = Form("case", method, bits)
        grid = form.grid(np.random.default_rng(1), (32, 64))
        with open_matrix(folder, form, form.pack("m", grid)) as source:
            rows = source.read(NAME)
            assert isinstance(rows, QuantisedRows)
            assert all(part.flags.writeable for part in rows.parts.values())
            source.release(NAME, 0, 32)
            assert np.array_equal(source.read(NAME, 4, 8).dequantise(), grid.values[4:8])  # type: ignore[union-attr]
            with pytest.raises(CheckpointError, match=r"rows 0\.\.33 of tensor m.weight do not exist; it has 32 rows"):
                source.read(NAME, 0, 33)


def test_the_packers_of_the_tests() -> None:
    """Compare words with numbers that were computed by hand."""
    grid = Grid(4, np.arange(64).reshape(8, 8) % 16, np.ones((8, 1)), np.arange(8)[:, None] + 1, np.zeros(8, int))
    assert np.frombuffer(gptq("m", grid)["m.qweight"][2], np.uint32)[0] == 0x76543210
    assert np.frombuffer(gptq("m", grid)["m.qzeros"][2], np.uint32)[0] == 0x76543210
    assert np.frombuffer(awq("m", grid)["m.qzeros"][2], np.uint32)[0] == 0x86427531
    assert np.frombuffer(compressed("m", grid)["m.weight_packed"][2], np.uint32)[1] == 0xFEDCBA98
    assert np.frombuffer(compressed("m", grid)["m.weight_zero_point"][2], np.uint32)[0] == 0x87654321
