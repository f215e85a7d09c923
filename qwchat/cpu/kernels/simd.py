"""SIMD layer: LLVM vectors as Numba values, and the operations that kernels are written in.

Memory is addressed by integers (`address`: bytes, as in `array.ctypes.data`), since a whole pass runs as one compiled
call over records of addresses. Vectors have sixteen lanes of 32 bits, or 64 bytes; on a machine with smaller registers
LLVM splits them. Results do not depend on the SIMD level: lanes are summed in a fixed order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from quant.native import simd_level
from quant.native.backend import cgutils, from_dtype, intrinsic, ir, models, register_model, types

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
V16F, V16I, V64B = ir.VectorType(F32, 16), ir.VectorType(I32, 16), ir.VectorType(I8, 64)


class Vector(types.Type):
    """Numba type of an LLVM vector."""

    def __init__(self, name: str, llvm_type: ir.VectorType) -> None:
        self.llvm_type = llvm_type
        super().__init__(name=f"qwchat_{name}")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, fe_type: Vector) -> None:
        super().__init__(manager, fe_type, fe_type.llvm_type)


f32x16 = Vector("f32x16", V16F)
i32x16 = Vector("i32x16", V16I)
u8x64 = Vector("u8x64", V64B)

Emit = Callable[..., Any]


# --- emitters: they make LLVM IR from IR values; the code generators call them directly -------------------------------


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector constant with `value` in every lane."""
    return ir.Constant(vector, [value] * vector.count)


def emit_load(builder: Any, address: Any, llvm_type: Any, align: int = 1) -> Any:
    """Emit a load of a value of `llvm_type` from an integer address."""
    value = builder.load(builder.inttoptr(address, llvm_type.as_pointer()))
    value.align = align
    return value


def emit_store(builder: Any, address: Any, value: Any, align: int = 1) -> None:
    """Emit a store of a value to an integer address."""
    store = builder.store(value, builder.inttoptr(address, value.type.as_pointer()))
    store.align = align


def emit_splat(builder: Any, value: Any, lanes: int = 16) -> Any:
    """Emit a vector with the scalar `value` in every lane."""
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def emit_call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    """Emit a call of an LLVM intrinsic or a libc function by name."""
    signature = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), arguments)


def emit_outlined(builder: Any, name: str, emit: Callable[..., None], *values: Any) -> None:
    """Emit `emit(builder, *values)` as a function of its own, and a call of it.

    LLVM allocates registers over a whole function: several loops in one function spill values that each loop alone
    could keep in registers.
    """
    signature = ir.FunctionType(ir.VoidType(), [value.type for value in values])
    function = ir.Function(builder.module, signature, name)
    function.linkage = "internal"
    function.attributes.add("noinline")
    body = ir.IRBuilder(function.append_basic_block())
    emit(body, *function.args)
    body.ret_void()
    builder.call(function, values)


def emit_pin(builder: Any, value: Any) -> Any:
    """Emit `value`, an integer or a vector, such that LLVM computes it here and shares it with no other place.

    On levels with few registers, LLVM must neither collect the products of a sum before it adds them, nor keep values
    that can be loaded again. An empty piece of inline assembly, which changes `value` as far as LLVM knows, keeps its
    place in the order.
    """
    if simd_level.lanes() == 16:
        return value
    vector = "x" if simd_level.architecture() == "x86" else "w"

    def pinned(part: Any, kind: str = vector) -> Any:
        return builder.asm(ir.FunctionType(part.type, [part.type]), "", f"={kind},0", [part], True)

    if isinstance(value.type, ir.IntType):
        return pinned(value, "r")
    return per_register(builder, value.type.count // simd_level.lanes(), pinned, value)


def emit_fma(builder: Any, a: Any, b: Any, c: Any) -> Any:
    """Emit `a * b + c`, rounded once."""
    return emit_call(builder, f"llvm.fma.v{a.type.count}f32", a.type, a, b, c)


def emit_prefetch(builder: Any, address: Any) -> None:
    """Emit a prefetch of the cache line at `address`, for reading, into every cache level."""
    pointer = builder.inttoptr(address, I8.as_pointer())
    emit_call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, I32(0), I32(3), I32(1))


def _halves(builder: Any, value: Any) -> tuple[Any, Any]:
    """Emit the lower and the upper half of the lanes of a vector."""
    half = value.type.count // 2
    masks = (list(range(half)), list(range(half, 2 * half)))
    low, high = (builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(I32, half), mask)) for mask in masks)
    return low, high


def _joined(builder: Any, low: Any, high: Any) -> Any:
    """Emit a vector of the lanes of two vectors."""
    lanes = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(ir.VectorType(I32, lanes), list(range(lanes))))


def bit_count(value: Any) -> int:
    """Return the size of a vector in bits."""
    return int(value.type.count * value.type.element.width)


def per_register(builder: Any, count: int, emit: Callable[..., Any], *values: Any) -> Any:
    """Emit `emit` for each of `count` equal parts of `values` (a power of two), and join the results."""
    if count == 1:
        return emit(*values)
    parts = zip(*(_halves(builder, value) for value in values), strict=True)
    return _joined(builder, *(per_register(builder, count // 2, emit, *part) for part in parts))


# Table look-up of each level: bits of a register, and the instruction.
_LOOKUPS = {
    "avx512vnni": (512, "llvm.x86.avx512.pshuf.b.512"),
    "avxvnni": (256, "llvm.x86.avx2.pshuf.b"),
    "avx2": (256, "llvm.x86.avx2.pshuf.b"),
    "neon": (128, "llvm.aarch64.neon.tbl1.v16i8"),
}


def emit_lookup(builder: Any, table: Sequence[int], codes: Any) -> Any:
    """Emit `table[code]` for codes below 16; `table` has 16 entries from -128 to 255."""
    table = [value % 256 for value in table]
    if simd_level.current_level() in _LOOKUPS:
        bits, instruction = _LOOKUPS[simd_level.current_level()]
        part = ir.VectorType(I8, bits // 8)
        entries = ir.Constant(part, table * (bits // 128))

        def one(codes: Any) -> Any:
            return emit_call(builder, instruction, part, entries, codes)

        return per_register(builder, bit_count(codes) // bits, one, codes)
    result = constant(codes.type, table[0])
    for code, value in enumerate(table[1:], start=1):
        here = builder.icmp_unsigned("==", codes, constant(codes.type, code))
        result = builder.select(here, constant(codes.type, value), result)
    return result


def emit_nibbles(builder: Any, packed: Any) -> tuple[Any, Any]:
    """Emit the low and the high 4 bits of bytes."""
    return builder.and_(packed, constant(packed.type, 15)), builder.lshr(packed, constant(packed.type, 4))


def emit_bytes4(builder: Any, address: Any, lanes: int = 16) -> Any:
    """Emit four consecutive bytes, repeated in all 32-bit lanes."""
    return builder.bitcast(emit_splat(builder, emit_load(builder, address, I32), lanes), ir.VectorType(I8, 4 * lanes))


def emit_bf16(builder: Any, address: Any) -> Any:
    """Emit sixteen bf16 values as f32: their bits are the upper half of a float's."""
    wide = builder.zext(emit_load(builder, address, ir.VectorType(I16, 16)), V16I)
    return builder.bitcast(builder.shl(wide, constant(V16I, 16)), V16F)


# --- operations for kernels written in Python -------------------------------------------------------------------------


def operation(result: types.Type, arguments: tuple[types.Type, ...], emit: Emit) -> Any:
    """Return a Numba intrinsic of fixed types, whose code is emitted by `emit(builder, *values)`.

    Args:
        result: Numba type of the result.
        arguments: Numba types of up to three arguments.
        emit: emits the code.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value = emit(builder, *values)
        return context.get_dummy_value() if result == types.void else value

    typed = result(*arguments)
    if len(arguments) == 0:
        return intrinsic(lambda typing: (typed, generate))
    if len(arguments) == 1:
        return intrinsic(lambda typing, a: (typed, generate))
    if len(arguments) == 2:
        return intrinsic(lambda typing, a, b: (typed, generate))
    return intrinsic(lambda typing, a, b, c: (typed, generate))


_address = types.int64


def record_at(dtype: np.dtype[Any]) -> Any:
    """Return the operation that views an address as a record of `dtype`; to Numba it is a pointer to its bytes."""
    pointer = ir.ArrayType(I8, dtype.itemsize).as_pointer()
    return operation(from_dtype(dtype), (_address,), lambda builder, address: builder.inttoptr(address, pointer))


def _reduce_in_order(builder: Any, value: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """Emit the combination of all lanes, always halving the vector: the order is the same on every level."""
    while value.type.count > 1:
        value = combine(*_halves(builder, value))
    return builder.extract_element(value, I32(0))


def _maximum(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _round(builder: Any, value: Any) -> Any:
    """Emit the nearest integers, ties to even."""
    return builder.fptosi(emit_call(builder, "llvm.rint.v16f32", V16F, value), V16I)


def _power_of_two(builder: Any, exponent: Any) -> Any:
    """Emit 2**exponent, made from the bits of a float."""
    biased = builder.add(exponent, constant(V16I, 127))
    return builder.bitcast(builder.shl(biased, constant(V16I, 23)), V16F)


def _add_exponents(builder: Any, value: Any, powers: Any) -> Any:
    """Emit value * 2**n, where n is in the low bits of `powers`."""
    words = (builder.bitcast(x, V16I) for x in (value, powers))
    return builder.bitcast(builder.add(next(words), builder.shl(next(words), constant(V16I, 23))), V16F)


def _keep(builder: Any, value: Any, count: Any, other: Any) -> Any:
    """Emit the first `count` lanes of `value`, and `other` in the lanes that follow."""
    lane = ir.Constant(V16I, list(range(16)))
    here = builder.icmp_signed("<", lane, emit_splat(builder, builder.trunc(count, I32)))
    return builder.select(here, value, emit_splat(builder, other))


def _zero_below(builder: Any, value: Any, bound: Any, result: Any) -> Any:
    """Emit `result`, but 0 where value < bound, and NaN where value is NaN."""
    result = builder.select(builder.fcmp_ordered("<", value, bound), constant(V16F, 0.0), result)
    return builder.select(builder.fcmp_unordered("uno", value, value), value, result)


load_f32 = operation(f32x16, (_address,), lambda b, a: emit_load(b, a, V16F))
store_f32 = operation(types.void, (_address, f32x16), emit_store)
prefetch = operation(types.void, (_address,), emit_prefetch)
splat = operation(f32x16, (types.float32,), emit_splat)
add = operation(f32x16, (f32x16, f32x16), lambda b, x, y: b.fadd(x, y))
subtract = operation(f32x16, (f32x16, f32x16), lambda b, x, y: b.fsub(x, y))
multiply = operation(f32x16, (f32x16, f32x16), lambda b, x, y: b.fmul(x, y))
divide = operation(f32x16, (f32x16, f32x16), lambda b, x, y: b.fdiv(x, y))
maximum = operation(f32x16, (f32x16, f32x16), _maximum)
minimum = operation(f32x16, (f32x16, f32x16), lambda b, x, y: b.select(b.fcmp_ordered("<", x, y), x, y))
fma = operation(f32x16, (f32x16, f32x16, f32x16), emit_fma)
absolute = operation(f32x16, (f32x16,), lambda b, x: emit_call(b, "llvm.fabs.v16f32", V16F, x))
round_to_i32 = operation(i32x16, (f32x16,), _round)
to_f32 = operation(f32x16, (i32x16,), lambda b, x: b.sitofp(x, V16F))
power_of_two = operation(f32x16, (i32x16,), _power_of_two)
store_i8 = operation(
    types.void, (_address, i32x16), lambda b, a, x: emit_store(b, a, b.trunc(x, ir.VectorType(I8, 16)))
)
store_i16 = operation(
    types.void, (_address, i32x16), lambda b, a, x: emit_store(b, a, b.trunc(x, ir.VectorType(I16, 16)))
)
load_f16 = operation(f32x16, (_address,), lambda b, a: b.fpext(emit_load(b, a, ir.VectorType(F16, 16), 2), V16F))
# (normal floats, floats whose low bits are n) -> value * 2**n
add_exponents = operation(f32x16, (f32x16, f32x16), _add_exponents)
sum_lanes = operation(types.float32, (f32x16,), lambda b, x: _reduce_in_order(b, x, b.fadd))
max_lanes = operation(types.float32, (f32x16,), lambda b, x: _reduce_in_order(b, x, lambda p, q: _maximum(b, p, q)))
sum_lanes_i32 = operation(types.int32, (i32x16,), lambda b, x: _reduce_in_order(b, x, b.add))
keep_lanes = operation(f32x16, (f32x16, types.int64, types.float32), _keep)
# (value, bound, result) -> result, but 0 where value < bound, and NaN where value is NaN
zero_below = operation(f32x16, (f32x16, f32x16, f32x16), _zero_below)

peek_f32 = operation(types.float32, (_address,), lambda b, a: emit_load(b, a, F32, 4))
poke_f32 = operation(types.void, (_address, types.float32), lambda b, a, x: emit_store(b, a, x, 4))
poke_i32 = operation(types.void, (_address, types.int32), lambda b, a, x: emit_store(b, a, x, 4))
peek_u8 = operation(types.uint8, (_address,), lambda b, a: emit_load(b, a, I8))
peek_i8 = operation(types.int8, (_address,), lambda b, a: emit_load(b, a, I8))
peek_i64 = operation(types.int64, (_address,), lambda b, a: emit_load(b, a, I64, 8))
peek_f16 = operation(types.float32, (_address,), lambda b, a: b.fpext(emit_load(b, a, F16), F32))
peek_bf16 = operation(
    types.float32, (_address,), lambda b, a: b.bitcast(b.shl(b.zext(emit_load(b, a, I16), I32), I32(16)), F32)
)
