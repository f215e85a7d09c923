"""Floating-point instructions and conversions of the interpreter against exact fractions."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest

from tests.cuda.single_instruction import evaluate, nearest

SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    2.0**-126,
    2.0**-149,
    -(2.0**-149),
    3.4e38,
    -3.4e38,
    65504.0,
    2.0**-14,
    2.0**-24,
    0.5,
    1.5,
]


def floats(seed: int) -> np.ndarray:
    """Return float32 of all magnitudes."""
    random = np.random.default_rng(seed)
    bits = random.integers(0, 2**32, 200, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = random.standard_normal(100).astype(np.float32)
    found = np.concatenate([np.array(SPECIAL, np.float32), bits[np.isfinite(bits)], near])[:224]
    return random.permutation(found)


def halves(seed: int) -> np.ndarray:
    """Return float16 of all magnitudes, as 16 bits."""
    bits = np.random.default_rng(seed).integers(0, 2**16, 400).astype(np.uint16)
    return bits[np.isfinite(bits.view(np.float16))][:256]


def brains(seed: int) -> np.ndarray:
    """Return bfloat16 of all magnitudes, as 16 bits."""
    bits = np.random.default_rng(seed).integers(0, 2**16, 400).astype(np.uint16)
    return bits[np.isfinite(value_of_brain(bits))][:256]


def value_of_brain(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def exact(function: Callable[..., Fraction], kind: str, *arrays: np.ndarray) -> list[float]:
    """Return a function of finite numbers, rounded once."""
    rows = zip(*([Fraction(float(v)) for v in array] for array in arrays), strict=True)
    return [nearest(function(*row), kind) for row in rows]


def same(got: np.ndarray, wanted: list[float]) -> bool:
    return np.array_equal(got.astype(np.float64), np.array(wanted))


@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("add.rn.f32", lambda a, b: a + b),
        ("add.f32", lambda a, b: a + b),
        ("sub.rn.f32", lambda a, b: a - b),
        ("mul.rn.f32", lambda a, b: a * b),
        ("div.rn.f32", lambda a, b: a / b),
        ("min.f32", min),
        ("max.f32", max),
    ],
)
def test_two_floats(opcode: str, function: Callable[[Fraction, Fraction], Fraction]) -> None:
    a, b = floats(1), floats(2)
    b = np.where(b == 0, np.float32(3), b) if opcode.startswith("div") else b
    (got,) = evaluate(f"{opcode} r0, a, b;", [("f32", a), ("f32", b)], ["f32"])
    assert same(got, exact(function, "f32", a, b))


def test_fma_rounds_once() -> None:
    a, b, c = floats(3), floats(4), floats(5)
    # 1 + 2^-23 squared needs 47 bits; with an addend far below, it lies just beside the middle between two floats.
    a[:4], b[:4] = np.float32(1 + 2**-12), np.float32(1 + 2**-12)
    c[:4] = [2.0**-60, -(2.0**-60), 2.0**-100, 0]
    a[4:8], b[4:8], c[4:8] = (
        2.0**-100,
        [2.0**-40, 3 * 2.0**-50, 2.0**-49, 2.0**-48],
        [2.0**-149, 2.0**-148, 0, 2.0**-140],
    )
    (got,) = evaluate("fma.rn.f32 r0, a, b, c;", [("f32", v) for v in (a, b, c)], ["f32"])
    assert same(got, exact(lambda x, y, z: x * y + z, "f32", a, b, c))


def test_special_values() -> None:
    a = [math.nan, 1.0, math.inf, -math.inf, 2.0**-140, -(2.0**-140), 1e-30, 0.0]
    b = [1.0, math.nan, math.inf, math.inf, 1.0, 1.0, 1e-30, -0.0]
    statement = (
        "min.f32 r0, a, b; max.NaN.f32 r1, a, b; add.ftz.f32 r2, a, a; mul.sat.f32 r3, a, b; mul.ftz.f32 r4, a, b;"
    )
    got = evaluate(statement, [("f32", a), ("f32", b)], ["f32"] * 5)
    np.testing.assert_array_equal(
        got[0], np.array([1, 1, math.inf, -math.inf, 2.0**-140, -(2.0**-140), 1e-30, 0], np.float32)
    )
    assert np.isnan(got[1][:2]).all()
    np.testing.assert_array_equal(got[1][2:4], [math.inf, math.inf])
    np.testing.assert_array_equal(got[2][4:6], [0, 0])
    np.testing.assert_array_equal(got[3], np.array([0, 0, 1, 0, 2.0**-140, 0, 0, 0], np.float32))
    np.testing.assert_array_equal(got[4][4:7], [0, 0, 0])


@pytest.mark.parametrize(
    ("how", "with_nan", "function"),
    [
        ("eq", False, lambda a, b: a == b),
        ("ne", False, lambda a, b: a != b),
        ("lt", False, lambda a, b: a < b),
        ("ge", False, lambda a, b: a >= b),
        ("equ", True, lambda a, b: a == b),
        ("neu", True, lambda a, b: a != b),
        ("ltu", True, lambda a, b: a < b),
        ("geu", True, lambda a, b: a >= b),
        ("num", False, lambda a, b: True),
        ("nan", True, lambda a, b: False),
    ],
)
def test_comparisons_of_floats(how: str, with_nan: bool, function: Callable[[float, float], bool]) -> None:
    a, b = floats(6), floats(7)
    b[::4] = a[::4]
    a[1::7], b[2::9] = math.nan, math.nan
    (got,) = evaluate(f"setp.{how}.f32 r0, a, b;", [("f32", a), ("f32", b)], ["pred"])
    rows = zip(a.tolist(), b.tolist(), strict=True)
    assert got.astype(bool).tolist() == [with_nan if x != x or y != y else function(x, y) for x, y in rows]


@pytest.mark.interpreter_only
@pytest.mark.parametrize(
    ("opcode", "function"),
    [
        ("ex2.approx.ftz.f32", lambda x: 2.0**x),
        ("rcp.approx.ftz.f32", lambda x: 1 / x),
        ("rcp.rn.f32", lambda x: 1 / x),
        ("sqrt.rn.f32", math.sqrt),
        ("sqrt.approx.f32", math.sqrt),
        ("rsqrt.approx.f32", lambda x: 1 / math.sqrt(x)),
        ("lg2.approx.f32", math.log2),
        ("sin.approx.f32", math.sin),
        ("cos.approx.f32", math.cos),
        ("tanh.approx.f32", math.tanh),
    ],
)
def test_functions(opcode: str, function: Callable[[float], float]) -> None:
    a = np.linspace(0.01, 20, 64).astype(np.float32)
    (got,) = evaluate(f"{opcode} r0, a;", [("f32", a)], ["f32"])
    np.testing.assert_allclose(got, [function(float(x)) for x in a], rtol=3e-7, atol=1e-7)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma", "min", "max"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_halves_and_pairs(kind: str, name: str) -> None:
    make, read = (halves, lambda v: v.view(np.float16)) if kind == "f16" else (brains, value_of_brain)
    parts = [make(seed) for seed in (8, 9, 10)][: 3 if name == "fma" else 2]
    functions = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "min": min,
        "max": max,
    }
    functions["fma"] = lambda a, b, c: a * b + c
    rounding = "" if name in ("min", "max") else ".rn"
    opcode, names = f"{name}{rounding}.{kind}", ", ".join("abc"[: len(parts)])
    wanted = exact(functions[name], kind, *(read(part) for part in parts))
    (got,) = evaluate(f"{opcode} r0, {names};", [("b16", part) for part in parts], ["b16"])
    assert same(read(got), wanted)
    pairs = [part.view(np.uint32) for part in parts]
    (got,) = evaluate(f"{opcode}x2 r0, {names};", [("b32", pair) for pair in pairs], ["b32"])
    assert same(read(got.view(np.uint16)), wanted)


def test_signs_of_pairs() -> None:
    a = halves(11).view(np.uint32)
    negative, absolute = evaluate("neg.f16x2 r0, a; abs.f16x2 r1, a;", [("b32", a)], ["b32", "b32"])
    assert (negative == (a ^ 0x80008000)).all()
    assert (absolute == (a & 0x7FFF7FFF)).all()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_floats_become_halves(kind: str) -> None:
    a, b = floats(12), floats(13)
    a[:3], b[:3] = [65519.9, 65520, 2049], [2.0**-25, 3 * 2.0**-26, 2051]
    read = (lambda v: v.view(np.float16)) if kind == "f16" else value_of_brain
    statement = f"cvt.rn.{kind}.f32 r0, a; cvt.rn.{kind}x2.f32 r1, a, b;"
    single, pair = evaluate(statement, [("f32", a), ("f32", b)], ["b16", "b32"])
    wanted = [exact(lambda x: x, kind, v) for v in (a, b)]
    assert same(read(single), wanted[0])
    assert same(read((pair >> 16).astype(np.uint16)), wanted[0])
    assert same(read((pair & 0xFFFF).astype(np.uint16)), wanted[1])


def test_halves_become_floats() -> None:
    a = halves(14)
    (got,) = evaluate("cvt.f32.f16 r0, a;", [("b16", a)], ["f32"])
    assert same(got, [float(v) for v in a.view(np.float16)])
    b = np.arange(-2100, 2100, 17)
    (got,) = evaluate("cvt.rn.f16.s32 r0, a;", [("s32", b)], ["b16"])
    assert same(got.view(np.float16), exact(lambda x: x, "f16", b))


@pytest.mark.parametrize(
    ("rounding", "function"), [("rni", round), ("rzi", math.trunc), ("rmi", math.floor), ("rpi", math.ceil)]
)
@pytest.mark.parametrize("kind", ["s32", "u32", "s8", "u8", "s64"])
def test_floats_become_integers(kind: str, rounding: str, function: Callable[[float], int]) -> None:
    a = np.concatenate(
        [floats(15), np.arange(-4, 4, 0.5, np.float32), np.array([127.5, -128.5, 2**31, -(2**31), 2**62], np.float32)]
    )
    bits = int(kind[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if kind[0] == "s" else (0, 2**bits - 1)
    wide = "b64" if bits == 64 else "b32"
    (got,) = evaluate(f"cvt.{rounding}.{kind}.f32 r0, a;", [("f32", a)], [wide])
    wanted = [max(low, min(high, function(float(x)))) & (2 ** int(wide[1:]) - 1) for x in a]
    assert got.tolist() == wanted
    (got,) = evaluate(f"cvt.{rounding}.{kind}.f32 r0, a;", [("f32", [math.nan, math.inf, -math.inf])], [wide])
    assert got.tolist() == [0, high & (2 ** int(wide[1:]) - 1), low & (2 ** int(wide[1:]) - 1)]


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_become_floats(kind: str) -> None:
    bits = int(kind[1:])
    random = np.random.default_rng(16)
    a = [int(v) >> int(s) for v, s in zip(random.integers(0, 2**63, 90), random.integers(0, 60, 90), strict=True)]
    a = [v & (2**bits - 1) for v in [*a, 2**bits - 1, 2 ** (bits - 1), 2**24 + 1, 2**25 + 3]]
    (got,) = evaluate(f"cvt.rn.f32.{kind} r0, a;", [(f"b{bits}", np.array(a, f"u{bits // 8}"))], ["f32"])
    signed = [v - 2**bits if kind[0] == "s" and v >> (bits - 1) else v for v in a]
    assert same(got, [nearest(Fraction(v), "f32") for v in signed])


def test_whole_numbers_stay_floats() -> None:
    a = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 7.25], np.float32)
    near, down = evaluate("cvt.rni.f32.f32 r0, a; cvt.rmi.f32.f32 r1, a;", [("f32", a)], ["f32", "f32"])
    assert near.tolist() == [-2, -0.0, 0, 2, 2, 7]
    assert down.tolist() == [-2, -1, 0, 1, 2, 7]


def test_rounding_towards_zero() -> None:
    a = floats(17)
    (got,) = evaluate("cvt.rz.f16.f32 r0, a;", [("f32", a)], ["b16"])
    values = got.view(np.float16).astype(np.float64)
    assert np.isfinite(values).all()
    assert (np.abs(values) <= np.abs(a.astype(np.float64))).all()
    with np.errstate(over="ignore"):
        away = np.copysign(np.float16(np.inf), got.view(np.float16))
        beyond = np.nextafter(got.view(np.float16), away).astype(np.float64)
    assert (np.abs(beyond) > np.abs(a.astype(np.float64))).all()


@pytest.mark.interpreter_only
def test_an_option_that_is_not_known_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"line \d+: add.rz.f32 r0, a, a: option rz"):
        evaluate("add.rz.f32 r0, a, a;", [("f32", [1.0])], ["f32"])
    with pytest.raises(NotImplementedError, match="teleport"):
        evaluate("teleport.f32 r0, a;", [("f32", [1.0])], ["f32"])
