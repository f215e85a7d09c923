"""Dot products of each SIMD level: LLVM IR that multiplies bytes, or 16-bit integers, and sums in 32-bit lanes.

All levels give the same sums, exactly. They differ in the instruction, and in whether it multiplies unsigned with
signed bytes or signed bytes only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from quant.native import simd_level
from quant.native.backend import ir
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.simd import I16, I32, V16I, Emit, bit_count, constant, per_register


def _as_words(builder: Any, value: Any) -> Any:
    """Emit the bits of a vector as 32-bit lanes."""
    return builder.bitcast(value, ir.VectorType(I32, bit_count(value) // 32))


def _dot_vnni(bits: int) -> Emit:
    part = ir.VectorType(I32, bits // 32)

    def emit(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
        def one(*values: Any) -> Any:
            return simd.emit_call(builder, f"llvm.x86.avx512.vpdpbusd.{bits}", part, *values)

        operands = (total, _as_words(builder, unsigned), _as_words(builder, signed))
        return per_register(builder, bit_count(total) // bits, one, *operands)

    return emit


def _dot_avx2(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Emit the dot product from `vpmaddwd` on even and odd bytes as 16-bit lanes: exact, unlike `vpmaddubsw`."""
    shorts = ir.VectorType(I16, bit_count(total) // 16)
    eight = constant(shorts, 8)
    u, s = builder.bitcast(unsigned, shorts), builder.bitcast(signed, shorts)
    pairs = (
        (builder.and_(u, constant(shorts, 255)), builder.ashr(builder.shl(s, eight), eight)),
        (builder.lshr(u, eight), builder.ashr(s, eight)),
    )

    def sums(weights: Any, values: Any) -> Any:
        return simd.emit_call(builder, "llvm.x86.avx2.pmadd.wd", ir.VectorType(I32, 8), weights, values)

    for pair in pairs:
        total = builder.add(total, per_register(builder, bit_count(total) // 256, sums, *pair))
    return total


def _pair_dot_avx2(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Emit the dot product from `vpmaddubsw`, for unsigned bytes up to 128 and values from -127 up.

    The sum of two products of at most 128 * 127 fits 16 bits.
    """

    def one(total: Any, u: Any, s: Any) -> Any:
        shorts = ir.VectorType(I16, 16)
        pairs = simd.emit_call(builder, "llvm.x86.avx2.pmadd.ub.sw", shorts, u, s)
        sums = simd.emit_call(builder, "llvm.x86.avx2.pmadd.wd", total.type, pairs, constant(shorts, 1))
        return builder.add(total, sums)

    return per_register(builder, bit_count(total) // 256, one, total, unsigned, signed)


def _signed_dot_avx2(builder: Any, total: Any, weights: Any, values: Any) -> Any:
    """Emit the dot product of signed bytes from `vpmaddubsw`.

    It multiplies the magnitudes of the weights with `values`, which get the signs of the weights.
    """

    def one(total: Any, w: Any, x: Any) -> Any:
        size = simd.emit_call(builder, "llvm.abs.v32i8", w.type, w, ir.IntType(1)(0))
        turned = simd.emit_call(builder, "llvm.x86.avx2.psign.b", w.type, x, w)
        return _pair_dot_avx2(builder, total, size, turned)

    return per_register(builder, bit_count(total) // 256, one, total, weights, values)


def _signed_dot_neon(builder: Any, total: Any, weights: Any, values: Any) -> Any:
    def one(*parts: Any) -> Any:
        return simd.emit_call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", ir.VectorType(I32, 4), *parts)

    return per_register(builder, bit_count(total) // 128, one, total, weights, values)


def _dot_neon(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Emit the dot product from `sdot`, which takes signed bytes: that of u - 128, plus 128 times the sum of s."""
    sums = _signed_dot_neon(builder, constant(total.type, 0), constant(signed.type, 1), signed)
    total = builder.add(total, builder.shl(sums, constant(total.type, 7)))
    return _signed_dot_neon(builder, total, emit_offset(builder, unsigned, 128), signed)


def _dot_portable(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    u, s = _as_words(builder, unsigned), _as_words(builder, signed)
    for byte in range(4):
        weight = builder.and_(builder.lshr(u, constant(u.type, 8 * byte)), constant(u.type, 255))
        value = builder.ashr(builder.shl(s, constant(s.type, 24 - 8 * byte)), constant(s.type, 24))
        total = builder.add(total, builder.mul(weight, value))
    return total


_DOTS: dict[str, Emit] = {
    "avx512vnni": _dot_vnni(512),
    "avxvnni": _dot_vnni(256),
    "avx2": _dot_avx2,
    "neon": _dot_neon,
    "portable": _dot_portable,
}
_SIGNED_DOTS: dict[str, Emit] = {"avx2": _signed_dot_avx2, "neon": _signed_dot_neon}


def emit_dot(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Emit `total[lane] += sum of 4 products` of unsigned and signed bytes, exact in 32 bits."""
    return _DOTS[simd_level.current_level()](builder, total, unsigned, signed)


def emit_peak_dot(builder: Any, total: Any, unsigned: Any, signed: Any) -> Any:
    """Emit the fewest instructions of the level that sum products of bytes, for unsigned bytes up to 127.

    The probe of the machine measures it. Kernels whose weights do not fit need more; see `emit_offset_dot`.
    """
    emit = _pair_dot_avx2 if simd_level.current_level() == "avx2" else emit_offset_dot
    return emit(builder, total, unsigned, signed)


def _dot16_in(bits: int, name: str, accumulates: bool) -> Callable[..., Any]:
    shorts, words = ir.VectorType(I16, bits // 16), ir.VectorType(I32, bits // 32)

    def emit(builder: Any, total: Any, a: Any, b: Any) -> Any:
        def one(*parts: Any) -> Any:
            if accumulates:
                return simd.emit_call(builder, name, words, *parts)
            sums = simd.emit_call(builder, name, words, *(builder.bitcast(part, shorts) for part in parts[1:]))
            return builder.add(parts[0], sums)

        return per_register(builder, 512 // bits, one, total, a, b)

    return emit


def _dot16_portable(builder: Any, total: Any, a: Any, b: Any) -> Any:
    sixteen = constant(V16I, 16)
    low = builder.mul(*(builder.ashr(builder.shl(x, sixteen), sixteen) for x in (a, b)))
    high = builder.mul(builder.ashr(a, sixteen), builder.ashr(b, sixteen))
    return builder.add(total, builder.add(low, high))


_DOTS16 = {
    "avx512vnni": _dot16_in(512, "llvm.x86.avx512.vpdpwssd.512", accumulates=True),
    "avxvnni": _dot16_in(256, "llvm.x86.avx512.vpdpwssd.256", accumulates=True),
    "avx2": _dot16_in(256, "llvm.x86.avx2.pmadd.wd", accumulates=False),
    "neon": _dot16_portable,
    "portable": _dot16_portable,
}


def emit_dot16(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """Emit `total[lane] += sum of 2 products` of the signed 16-bit halves of sixteen words, exact in 32 bits."""
    return _DOTS16[simd_level.current_level()](builder, total, a, b)


def dot_offset(largest: int) -> int:
    """Return the number by which weight bytes up to `largest` must be reduced for `emit_offset_dot`.

    This is 128 on levels that multiply signed bytes only, if the bytes are too large for that; otherwise 0. A zero
    point that is reduced by the same number compensates for it at no cost.
    """
    return 128 if simd_level.current_level() in _SIGNED_DOTS and largest > 127 else 0


def emit_offset(builder: Any, unsigned: Any, offset: int) -> Any:
    """Emit unsigned bytes less `offset` (0 or 128), modulo 256."""
    return builder.xor(unsigned, constant(unsigned.type, offset)) if offset else unsigned


def emit_offset_dot(builder: Any, total: Any, weights: Any, signed: Any) -> Any:
    """Emit the sum of `emit_dot`, for weight bytes less their `dot_offset` and for values from -127 up."""
    return _SIGNED_DOTS.get(simd_level.current_level(), emit_dot)(builder, total, weights, signed)
