"""Integer instructions of the interpreter against definitions on Python's integers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from tests.cuda.single_instruction import evaluate

EDGES = [0, 1, 2, 7, 31, 32, 33, 127, 128, 255, 256, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF]


def words(seed: int, bits: int = 32) -> list[int]:
    """Return edge cases and random numbers, in an order of their own."""
    random = np.random.default_rng(seed)
    edges = EDGES if bits == 32 else [*EDGES, 2**63, 2**63 - 1, 2**64 - 1, 2**32]
    found = [*edges, *edges, *(int(v) for v in random.integers(0, 2**bits, 64, dtype=np.uint64))]
    return [int(v) for v in random.permutation(np.array(found, np.uint64))]


def signed(value: int, bits: int = 32) -> int:
    """Return the two's complement value of a number's lowest bits."""
    value &= 2**bits - 1
    return value - 2**bits if value >> (bits - 1) else value


def towards_zero(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def table3(table: int, a: int, b: int, c: int) -> int:
    return sum((table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i for i in range(32))


def selected_bytes(a: int, b: int, selector: int) -> int:
    pool = [(a >> 8 * i) & 255 for i in range(4)] + [(b >> 8 * i) & 255 for i in range(4)]
    out = 0
    for i in range(4):
        nibble = selector >> 4 * i & 15
        byte = pool[nibble & 7]
        out |= (byte if nibble < 8 else (255 if byte & 128 else 0)) << 8 * i
    return out


def dot(a: int, b: int, c: int, kinds: str) -> int:
    def part(word: int, i: int, kind: str) -> int:
        byte = (word >> 8 * i) & 255
        return signed(byte, 8) if kind == "s" else byte

    return c + sum(part(a, i, kinds[0]) * part(b, i, kinds[1]) for i in range(4))


def field(value: int, position: int, length: int, is_signed: bool) -> int:
    """Return bits as the manual's loop for `bfe` defines them."""
    position, length = position & 255, length & 255
    sign = value >> min(position + length - 1, 31) & 1 if is_signed and length else 0
    bits = [value >> (position + i) & 1 if i < length and position + i <= 31 else sign for i in range(32)]
    return sum(bit << i for i, bit in enumerate(bits))


BINARY: dict[str, Callable[[int, int], int]] = {
    "add.s32": lambda a, b: a + b,
    "sub.u32": lambda a, b: a - b,
    "mul.lo.s32": lambda a, b: a * b,
    "mul.hi.u32": lambda a, b: a * b >> 32,
    "mul.hi.s32": lambda a, b: signed(a) * signed(b) >> 32,
    "and.b32": lambda a, b: a & b,
    "or.b32": lambda a, b: a | b,
    "xor.b32": lambda a, b: a ^ b,
    "min.s32": lambda a, b: min(signed(a), signed(b)),
    "max.s32": lambda a, b: max(signed(a), signed(b)),
    "min.u32": min,
    "max.u32": max,
    "div.u32": lambda a, b: a // b if b else 2**32 - 1,
    "div.s32": lambda a, b: towards_zero(signed(a), signed(b)) if b else -1,
    "rem.u32": lambda a, b: a % b if b else a,
    "rem.s32": lambda a, b: signed(a) - towards_zero(signed(a), signed(b)) * signed(b) if b else a,
    "shl.b32": lambda a, b: a << b if b < 32 else 0,
    "shr.u32": lambda a, b: a >> min(b, 40),
    "shr.s32": lambda a, b: signed(a) >> min(b, 40),
}
UNARY: dict[str, Callable[[int], int]] = {
    "not.b32": lambda a: ~a,
    "neg.s32": lambda a: -signed(a),
    "abs.s32": lambda a: abs(signed(a)),
    "popc.b32": lambda a: a.bit_count(),
    "clz.b32": lambda a: 32 - a.bit_length(),
    "brev.b32": lambda a: int(f"{a:032b}"[::-1], 2),
    "cvt.u32.u8": lambda a: a & 255,
    "cvt.s32.s8": lambda a: signed(a, 8),
    "cvt.s32.s16": lambda a: signed(a, 16),
    "cvt.u32.u16": lambda a: a & 0xFFFF,
    "cvt.sat.s8.s32": lambda a: max(-128, min(127, signed(a))),
    "cvt.sat.u8.s32": lambda a: max(0, min(255, signed(a))),
}
TERNARY: dict[str, Callable[[int, int, int], int]] = {
    "mad.lo.s32": lambda a, b, c: a * b + c,
    "prmt.b32": selected_bytes,
    "dp4a.u32.s32": lambda a, b, c: dot(a, b, c, "us"),
    "dp4a.s32.u32": lambda a, b, c: dot(a, b, c, "su"),
    "dp4a.s32.s32": lambda a, b, c: dot(a, b, c, "ss"),
    "dp4a.u32.u32": lambda a, b, c: dot(a, b, c, "uu"),
    "shf.l.wrap.b32": lambda a, b, c: (b << 32 | a) << (c & 31) >> 32,
    "shf.r.wrap.b32": lambda a, b, c: (b << 32 | a) >> (c & 31),
    "shf.l.clamp.b32": lambda a, b, c: (b << 32 | a) << min(c, 32) >> 32,
    "shf.r.clamp.b32": lambda a, b, c: (b << 32 | a) >> min(c, 32),
    "bfe.u32": lambda a, b, c: field(a, b, c, False),
    "bfe.s32": lambda a, b, c: field(a, b, c, True),
}


def low(value: int, bits: int = 32) -> int:
    return value & (2**bits - 1)


@pytest.mark.parametrize("opcode", BINARY)
def test_two_operands(opcode: str) -> None:
    a, b = words(1), words(2)
    (got,) = evaluate(f"{opcode} r0, a, b;", [("b32", a), ("b32", b)], ["b32"])
    assert got.tolist() == [low(BINARY[opcode](x, y)) for x, y in zip(a, b, strict=True)]


@pytest.mark.parametrize("opcode", UNARY)
def test_one_operand(opcode: str) -> None:
    a = words(3)
    (got,) = evaluate(f"{opcode} r0, a;", [("b32", a)], ["b32"])
    if opcode.startswith("cvt") and opcode.split(".")[-2][1:] == "8":
        got = got & 255
    wanted = [
        low(UNARY[opcode](x)) & (255 if "8." in opcode.split("cvt")[-1] and "sat" in opcode else 2**32 - 1) for x in a
    ]
    assert got.tolist() == wanted


@pytest.mark.parametrize("opcode", TERNARY)
def test_three_operands(opcode: str) -> None:
    a, b, c = words(4), words(5), words(6)
    if opcode.startswith("bfe"):
        b, c = [x % 40 for x in b], [x % 40 for x in c]
    (got,) = evaluate(f"{opcode} r0, a, b, c;", [("b32", v) for v in (a, b, c)], ["b32"])
    assert got.tolist() == [low(TERNARY[opcode](*xyz)) for xyz in zip(a, b, c, strict=True)]


@pytest.mark.parametrize("selector", [0x3210, 0x7654, 0x4140, 0x4342, 0xFEDC, 0x8888, 0x0])
def test_a_permutation_that_is_the_same_everywhere(selector: int) -> None:
    a, b = words(7), words(8)
    (got,) = evaluate(f"prmt.b32 r0, a, b, {selector};", [("b32", a), ("b32", b)], ["b32"])
    assert got.tolist() == [selected_bytes(x, y, selector) for x, y in zip(a, b, strict=True)]


def test_a_permutation_of_a_table() -> None:
    selectors = words(9)
    statement = "mov.b32 a, 0x80FF017F; prmt.b32 r0, a, 0x44332211, b;"
    (got,) = evaluate(statement, [("b32", selectors), ("b32", selectors)], ["b32"])
    assert got.tolist() == [selected_bytes(0x80FF017F, 0x44332211, x) for x in selectors]


@pytest.mark.parametrize("table", [0xB8, 0x96, 0xE8, 0x01, 0xFF, 0x00, 0xCA])
def test_lop3(table: int) -> None:
    a, b, c = words(10), words(11), words(12)
    (got,) = evaluate(f"lop3.b32 r0, a, b, c, {table};", [("b32", v) for v in (a, b, c)], ["b32"])
    assert got.tolist() == [table3(table, *xyz) for xyz in zip(a, b, c, strict=True)]


def test_bfi() -> None:
    a, b, c, d = words(13), words(14), [x % 40 for x in words(15)], [x % 40 for x in words(16)]
    (got,) = evaluate("bfi.b32 r0, a, b, c, d;", [("b32", v) for v in (a, b, c, d)], ["b32"])
    masks = [((2**n - 1) << p) & 0xFFFFFFFF for p, n in zip(c, d, strict=True)]
    wanted = [(y & ~m) | ((x << p) & m) for x, y, p, m in zip(a, b, c, masks, strict=True)]
    assert got.tolist() == wanted


@pytest.mark.parametrize(
    ("opcode", "wide"),
    [("mul.wide.s32", lambda a, b: signed(a) * signed(b)), ("mul.wide.u32", lambda a, b: a * b)],
)
def test_wide_products(opcode: str, wide: Callable[[int, int], int]) -> None:
    a, b = words(17), words(18)
    (got,) = evaluate(f"{opcode} r0, a, b;", [("b32", a), ("b32", b)], ["b64"])
    assert got.tolist() == [low(wide(x, y), 64) for x, y in zip(a, b, strict=True)]
    (got,) = evaluate(f"{opcode} r0, a, -5;", [("b32", a)], ["b64"])
    assert got.tolist() == [low(wide(x, low(-5)), 64) for x in a]
    c = words(30, 64)[: len(a)]
    a, b = a[: len(c)], b[: len(c)]
    (got,) = evaluate(f"{opcode.replace('mul', 'mad')} r0, a, b, c;", [("b32", a), ("b32", b), ("b64", c)], ["b64"])
    assert got.tolist() == [low(wide(x, y) + z, 64) for x, y, z in zip(a, b, c, strict=True)]


@pytest.mark.parametrize(
    ("opcode", "wanted"),
    [
        ("add.s64", lambda a, b: a + b),
        ("sub.s64", lambda a, b: a - b),
        ("mul.lo.s64", lambda a, b: a * b),
        ("mul.hi.u64", lambda a, b: a * b >> 64),
        ("mul.hi.s64", lambda a, b: signed(a, 64) * signed(b, 64) >> 64),
        ("div.u64", lambda a, b: a // b if b else 2**64 - 1),
        ("div.s64", lambda a, b: towards_zero(signed(a, 64), signed(b, 64)) if b else -1),
        (
            "rem.s64",
            lambda a, b: signed(a, 64) - towards_zero(signed(a, 64), signed(b, 64)) * signed(b, 64) if b else a,
        ),
    ],
)
def test_64_bits(opcode: str, wanted: Callable[[int, int], int]) -> None:
    a, b = words(19, 64), words(20, 64)
    (got,) = evaluate(f"{opcode} r0, a, b;", [("b64", a), ("b64", b)], ["b64"])
    assert got.tolist() == [low(wanted(x, y), 64) for x, y in zip(a, b, strict=True)]


def test_shifts_of_64_bits() -> None:
    a, b = words(21, 64), [x % 70 for x in words(22, 64)]
    (left, right, signed_right) = evaluate(
        "shl.b64 r0, a, b; shr.u64 r1, a, b; shr.s64 r2, a, 5;", [("b64", a), ("b32", b)], ["b64", "b64", "b64"]
    )
    assert left.tolist() == [low(x << y, 64) if y < 64 else 0 for x, y in zip(a, b, strict=True)]
    assert right.tolist() == [x >> y for x, y in zip(a, b, strict=True)]
    assert signed_right.tolist() == [low(signed(x, 64) >> 5, 64) for x in a]


@pytest.mark.parametrize("kind", ["s32", "u32"])
@pytest.mark.parametrize("how", ["eq", "ne", "lt", "le", "gt", "ge"])
def test_comparisons(how: str, kind: str) -> None:
    a, b = words(23), words(24)
    b[::5] = a[::5]
    (got, opposite) = evaluate(f"setp.{how}.{kind} r0|r1, a, b;", [("b32", a), ("b32", b)], ["pred", "pred"])
    compare = {
        "eq": int.__eq__,
        "ne": int.__ne__,
        "lt": int.__lt__,
        "le": int.__le__,
        "gt": int.__gt__,
        "ge": int.__ge__,
    }
    read = signed if kind == "s32" else int
    wanted = [compare[how](read(x), read(y)) for x, y in zip(a, b, strict=True)]
    assert got.astype(bool).tolist() == wanted
    assert (opposite == 0).tolist() == wanted


def test_predicates_are_combined_and_guard() -> None:
    a, b = words(25), words(26)
    p = [x & 1 for x in words(27)]
    statement = (
        "setp.lt.and.s32 r0, a, 7, c; and.pred r1, r0, c; mov.b32 r2, 5; @!r0 add.s32 r2, r2, a; selp.b32 r3, a, b, c;"
    )
    got = evaluate(statement, [("b32", a), ("b32", b), ("pred", p)], ["pred", "pred", "b32", "b32"])
    both = [signed(x) < 7 and bool(q) for x, q in zip(a, p, strict=True)]
    assert got[0].astype(bool).tolist() == both
    assert got[1].astype(bool).tolist() == both
    assert got[2].tolist() == [5 if q else low(5 + x) for x, q in zip(a, both, strict=True)]
    assert got[3].tolist() == [x if q else y for x, y, q in zip(a, b, p, strict=True)]


def test_words_are_split_and_joined() -> None:
    a, b = words(28), words(29)
    statement = "{.reg .b16 l, h; mov.b32 {l, h}, a; mov.b32 r0, {h, l}; mov.b64 r1, {a, b}; mov.b64 {_, r2}, r1;}"
    halves, joined, upper = evaluate(statement, [("b32", a), ("b32", b)], ["b32", "b64", "b32"])
    assert halves.tolist() == [(x & 0xFFFF) << 16 | x >> 16 for x in a]
    assert joined.tolist() == [y << 32 | x for x, y in zip(a, b, strict=True)]
    assert upper.tolist() == b


def test_constants_of_all_types() -> None:
    statement = "mov.pred r0, 1; mov.b64 r1, -2; mov.f32 r2, 0fC0200000; mov.b16 r3, 0x8001; mov.u32 r4, 4294967295;"
    got = evaluate(statement, [("b32", [0])], ["pred", "b64", "f32", "b16", "b32"])
    assert [values.item() for values in got] == [1, 2**64 - 2, -2.5, 0x8001, 2**32 - 1]
