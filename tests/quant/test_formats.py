"""Packing, unpacking and dequantising, compared with formulas written out element by element."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant import formats
from quant.errors import FormatError
from quant.formats import GroupedFormat, IntegerFormat, PackedTensor, q4, q6, q8
from quant.formats.dense import BF16, F32, VECTOR
from quant.formats.linear import LIN4, LIN8
from tests.tiers import count

SHAPES = [(1, 32), (15, 64), (16, 32), (17, 96), (40, 128), (33, 896)]


def random_q4(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, columns = shape
    codes = random.integers(0, 16, shape, dtype=np.uint8)
    scales = random.integers(-64, 64, (rows, columns // 32), dtype=np.int8)
    bits = random.integers(0, 2, (rows, columns // 32), dtype=np.uint8)
    return codes, scales, bits, random.standard_normal(rows).astype(np.float32)


def random_q8(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, columns = shape
    codes = random.integers(-127, 128, shape, dtype=np.int8)
    scales = random.integers(0, 256, (rows, columns // 32), dtype=np.uint8)
    return codes, scales, random.standard_normal(rows).astype(np.float32)


def random_q6(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, columns = shape
    codes = random.integers(-32, 32, shape, dtype=np.int8)
    scales = random.integers(-127, 128, (rows, columns // 32), dtype=np.int8)
    return codes, scales, random.standard_normal(rows).astype(np.float32)


def random_linear(
    fmt: IntegerFormat, shape: tuple[int, int], group_size: int, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    rows, columns = shape
    top = 1 << fmt.bits
    groups = (rows, columns // group_size)
    return (
        random.integers(0, top, shape).astype(np.uint8),
        random.standard_normal(groups).astype(np.float16),
        random.integers(0, top, groups).astype(np.uint8),
    )


def examples() -> list[PackedTensor]:
    """Return one packed tensor of every format and variant, with an odd number of rows."""
    random = np.random.default_rng(5)
    values = random.standard_normal((21, 128)).astype(np.float32)
    codes4, scales4, zeros4 = random_linear(LIN4, (21, 128), 64)
    codes8, scales8, zeros8 = random_linear(LIN8, (21, 128), 128)
    return [
        q4.pack(*random_q4((21, 128))),
        q8.pack(*random_q8((21, 128))),
        q6.pack(*random_q6((21, 128))),
        LIN4.pack(codes4, scales4, 64, zeros=zeros4),
        LIN4.pack(codes4, scales4, 64),
        LIN8.pack(codes8, scales8, 128, zeros=zeros8),
        BF16.pack((values.view(np.uint32) >> 16).astype(np.uint16)),
        F32.pack(values),
    ]


@pytest.mark.parametrize("shape", SHAPES)
def test_q4_bytes_are_where_the_layout_says(shape: tuple[int, int]) -> None:
    codes, scales, bits, row_scales = random_q4(shape)
    packed = q4.pack(codes, scales, bits, row_scales)
    values = formats.dequantise(packed)
    random = np.random.default_rng(1)
    for _ in range(50):
        row, column = int(random.integers(shape[0])), int(random.integers(shape[1]))
        tile, lane = divmod(row, 16)
        byte = packed.parts["codes"][tile, column // 8, lane, column % 4]
        code = byte & 15 if column % 8 < 4 else byte >> 4
        scale_byte = int(packed.parts["scales"][tile, column // 32, lane])
        assert code == codes[row, column]
        assert scale_byte >> 1 == scales[row, column // 32]
        assert scale_byte & 1 == bits[row, column // 32]
        level = int(q4.CODEBOOK[code]) + q4.SHIFT * (scale_byte & 1)
        expected = np.float32(packed.parts["row_scales"][tile, lane] * np.float32(scale_byte >> 1)) * np.float32(level)
        assert values[row, column] == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_q8_bytes_are_where_the_layout_says(shape: tuple[int, int]) -> None:
    codes, scales, row_scales = random_q8(shape)
    packed = q8.pack(codes, scales, row_scales)
    values = formats.dequantise(packed)
    random = np.random.default_rng(1)
    for _ in range(50):
        row, column = int(random.integers(shape[0])), int(random.integers(shape[1]))
        tile, lane = divmod(row, 16)
        quantum = int(packed.parts["codes"][tile, column // 4, lane, column % 4]) - 128
        scale = packed.parts["scales"][tile, column // 32, lane]
        assert quantum == codes[row, column]
        assert scale == scales[row, column // 32]
        expected = np.float32(row_scales[row] * np.float32(scale)) * np.float32(quantum)
        assert values[row, column] == expected


@pytest.mark.parametrize("shape", SHAPES)
def test_q6_bits_are_where_the_layout_says(shape: tuple[int, int]) -> None:
    codes, scales, row_scales = random_q6(shape)
    packed = q6.pack(codes, scales, row_scales)
    assert packed.parts["codes"].shape == (-(-shape[0] // 16), 3 * shape[1] // 16, 16, 4)
    values = formats.dequantise(packed)
    random = np.random.default_rng(1)
    for _ in range(50):
        row, column = int(random.integers(shape[0])), int(random.integers(shape[1]))
        tile, lane = divmod(row, 16)
        sixteen, quad, place = column // 16, column % 16 // 4, column % 4
        lines = [int(packed.parts["codes"][tile, 3 * sixteen + line, lane, place]) for line in range(3)]
        code = lines[quad] & 63 if quad < 3 else sum(line >> 6 << 2 * number for number, line in enumerate(lines))
        scale = packed.parts["scales"][tile, column // 32, lane]
        assert code - 32 == codes[row, column]
        assert scale == scales[row, column // 32]
        expected = np.float32(row_scales[row] * np.float32(scale)) * np.float32(code - 32)
        assert values[row, column] == expected


@pytest.mark.parametrize("fmt", [LIN4, LIN8], ids=lambda fmt: fmt.name)
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("with_zeros", [False, True])
def test_linear_bytes_are_where_the_layout_says(fmt: IntegerFormat, group_size: int, with_zeros: bool) -> None:
    codes, scales, zeros = random_linear(fmt, (19, 256), group_size)
    packed = fmt.pack(codes, scales, group_size, zeros=zeros if with_zeros else None)
    assert ("zeros" in packed.parts) == with_zeros
    values = formats.dequantise(packed)
    for row, column in [(0, 0), (3, 5), (15, 255), (16, 130), (18, 71)]:
        tile, lane = divmod(row, 16)
        if fmt is LIN4:
            byte = packed.parts["codes"][tile, column // 8, lane, column % 4]
            code = int(byte & 15 if column % 8 < 4 else byte >> 4)
        else:
            code = int(packed.parts["codes"][tile, column // 4, lane, column % 4])
        zero = int(zeros[row, column // group_size]) if with_zeros else (8 if fmt is LIN4 else 128)
        scale = packed.parts["scales"][tile, column // group_size, lane].astype(np.float32)
        assert values[row, column] == scale * np.float32(code - zero)


def test_dense_tiles() -> None:
    values = np.random.default_rng(0).standard_normal((18, 64)).astype(np.float32)
    packed = F32.pack(values)
    assert packed.parts["values"][1, 7, 1] == values[17, 7]
    assert np.array_equal(formats.dequantise(packed), values)
    bits = (values.view(np.uint32) >> 16).astype(np.uint16)
    rounded = formats.dequantise(BF16.pack(bits))
    assert np.array_equal(rounded.view(np.uint32) >> 16, bits)
    vector = VECTOR.pack(values[0])
    assert np.array_equal(formats.dequantise(vector), values[0])


@pytest.mark.parametrize("packed", examples(), ids=lambda packed: packed.format)
def test_padding_rows_are_zero_and_parts_fit_the_layout(packed: PackedTensor) -> None:
    formats.check_packed(packed)
    whole = PackedTensor(packed.format, (32, packed.shape[1]), packed.group_size, packed.parts)
    assert not formats.dequantise(whole)[packed.shape[0] :].any()
    parts = formats.layout(packed.format, packed.shape, packed.group_size, "zeros" in packed.parts)
    assert packed.nbytes == sum(dtype.itemsize * int(np.prod(shape)) for dtype, shape in parts.values())
    assert list(parts) == list(packed.parts)


@pytest.mark.parametrize("packed", examples(), ids=lambda packed: packed.format)
def test_rows_equal_the_whole(packed: PackedTensor) -> None:
    whole = formats.dequantise(packed)
    rows = [20, 0, 7, 7, 16]
    assert np.array_equal(formats.dequantise_rows(packed, rows), whole[rows])
    assert formats.dequantise_rows(packed, []).shape == (0, 128)
    for bad in ([21], [-1]):
        with pytest.raises(FormatError, match=r"row ids must be 0\.\.20"):
            formats.dequantise_rows(packed, bad)


@settings(deadline=None, max_examples=count(40, 10))
@given(rows=st.integers(1, 50), blocks=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(rows: int, blocks: int, seed: int) -> None:
    shape = (rows, 32 * blocks)
    four, eight, lin = random_q4(shape, seed), random_q8(shape, seed), random_linear(LIN4, shape, 32, seed)
    six = random_q6(shape, seed)
    codes, scales, zeros = lin
    packed = LIN4.pack(codes, scales, 32, zeros=zeros)
    pairs: list[tuple[np.ndarray, np.ndarray]] = [
        *zip(four, q4.unpack(q4.pack(*four)), strict=True),
        *zip(six, q6.unpack(q6.pack(*six)), strict=True),
        *zip(eight, q8.unpack(q8.pack(*eight)), strict=True),
        *zip(lin, (LIN4.codes(packed), LIN4.scales(packed), LIN4.zeros(packed)), strict=True),
    ]
    for before, after in pairs:
        assert np.array_equal(before, after)


def test_q4_tables_fit_signed_bytes() -> None:
    book = q4.CODEBOOK.astype(int)
    assert book.shape == (16,)
    assert (np.diff(book) > 0).all()
    assert min(book.min(), (book + q4.SHIFT).min()) >= -127
    assert max(book.max(), (book + q4.SHIFT).max()) <= 127


@pytest.mark.parametrize(
    ("name", "shape", "group_size", "zeros", "message"),
    [
        ("q5", (16, 32), 32, False, "unknown tensor format 'q5'"),
        ("q4", (16, 48), 32, False, "multiple of 32"),
        ("q4", (16,), 32, False, "stores matrices"),
        ("q4", (0, 32), 32, False, "stores matrices"),
        ("q4", (16, 64), 64, False, "group sizes"),
        ("q4", (16, 64), 32, True, "no zero points"),
        ("q8", (16, 64), 64, False, "group sizes"),
        ("q6", (16, 48), 32, False, "multiple of 32"),
        ("q6", (16, 32), 32, True, "no zero points"),
        ("lin4", (16, 96), 64, False, "multiple of 64"),
        ("lin8", (16, 96), 48, False, "group sizes"),
        ("bf16", (16, 32), 32, False, "group sizes"),
        ("vector", (16, 32), 0, False, "stores vectors"),
        ("vector", (16,), 32, False, "does not have groups"),
    ],
)
def test_layout_refuses(name: str, shape: tuple[int, ...], group_size: int, zeros: bool, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        formats.layout(name, shape, group_size, zeros)


def test_check_refuses_parts_that_contradict_the_layout() -> None:
    good = q4.pack(*random_q4((16, 64)))
    wrong_dtype = {**good.parts, "scales": good.parts["scales"].view(np.uint8)}
    wrong_shape = {**good.parts, "row_scales": good.parts["row_scales"].reshape(-1)}
    for parts, message in [
        (wrong_dtype, "part scales is uint8"),
        (wrong_shape, "part row_scales"),
        ({"codes": good.parts["codes"]}, "missing"),
        ({**good.parts, "extra": good.parts["scales"]}, "unknown"),
    ]:
        with pytest.raises(FormatError, match=message):
            formats.check_packed(PackedTensor("q4", good.shape, 32, parts))


def test_pack_refuses_values_out_of_range() -> None:
    codes, scales, bits, row_scales = random_q4((16, 32))
    with pytest.raises(FormatError, match=r"codes must be 0\.\.15"):
        q4.pack(codes + 16, scales, bits, row_scales)
    with pytest.raises(FormatError, match=r"scales must be -64\.\.63"):
        q4.pack(codes, np.full_like(scales, 64), bits, row_scales)
    with pytest.raises(FormatError, match="row scales"):
        q4.pack(codes, scales, bits, row_scales[:3])
    with pytest.raises(FormatError, match=r"codes must be -127\.\.127"):
        q8.pack(np.full((1, 32), -128, np.int8), np.ones((1, 1), np.uint8), np.ones(1, np.float32))
    one, row = np.ones((1, 1), np.int8), np.ones(1, np.float32)
    for code in (-33, 32):
        with pytest.raises(FormatError, match=r"q6 codes must be -32\.\.31"):
            q6.pack(np.full((1, 32), code, np.int8), one, row)
    with pytest.raises(FormatError, match=r"q6 scales must be -127\.\.127"):
        q6.pack(np.ones((1, 32), np.int8), -128 * one, row)


@pytest.mark.parametrize(
    ("fmt", "group_size", "bits"),
    [(q4.Q4, 32, 4.25), (q6.Q6, 32, 6.25), (q8.Q8, 32, 8.25), (LIN4, 64, 4.375), (LIN8, 128, 8.125)],
)
def test_effective_bits_are_those_of_the_parts(fmt: GroupedFormat, group_size: int, bits: float) -> None:
    """Compare without the row scale, which all columns of a row share."""
    assert fmt.effective_bits(group_size) == bits
    parts = fmt.layout((16, 1024), group_size, fmt.stores_zeros)
    stored = sum(dtype.itemsize * int(np.prod(shape)) for name, (dtype, shape) in parts.items() if name != "row_scales")
    assert 8 * stored / (16 * 1024) == bits


def test_formats_are_named_where_they_are_recorded() -> None:
    """Check that other code does not name formats: a new format must need only its record."""
    root = Path(formats.__file__).parents[2]
    exempt = {
        "quant/presets.py",  # which formats a preset mixes
        "quant/bit_budget.py",  # and which a budget of bits mixes
        "quant/sources/gguf/block_parts.py",  # which format keeps the codes of a block type
        "qwchat/cpu/kv_cache.py",  # kinds of KV cache, which have names like formats
        "qwchat/cpu/decoder.py",
        "qwchat/cpu/kernels/records.py",
    }
    names = {name for name, fmt in formats.FORMATS.items() if isinstance(fmt, GroupedFormat)}
    files = [*(root / "quant").rglob("*.py"), *(root / "qwchat" / "cpu").rglob("*.py")]
    named = {
        str(file.relative_to(root))
        for file in files
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    assert {file for file in named if not file.startswith("quant/formats/")} <= exempt
