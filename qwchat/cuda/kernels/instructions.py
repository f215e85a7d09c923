"""PTX instructions as functions for kernels, one table row each.

`op` makes an intrinsic whose body is LLVM inline assembly. Types are one letter each: i/u = 32-bit signed/unsigned,
l = 64-bit unsigned (an address), f = float32; "" = no result; several letters = a tuple. Halves travel in u words.

Loads, stores, atomics and barriers have `effect`: otherwise LLVM takes the assembly for arithmetic and moves it above
the test that guards its address. Instructions of a whole warp have `warp`: they are never moved into a branch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from qwchat.cuda.kernels.toolchain import A, F, I, U, intrinsic, ir, types

_NUMBA = {"i": I, "u": U, "l": A, "f": F}
_LLVM = {"i": ir.IntType(32), "u": ir.IntType(32), "l": ir.IntType(64), "f": ir.FloatType()}
_CONSTRAINTS = {"i": "r", "u": "r", "l": "l", "f": "f"}


class Signature(NamedTuple):
    """Letters of an instruction's results and arguments."""

    result: str
    arguments: str


SIGNATURES: dict[str, Signature] = {}
"""The signature of each instruction."""


def op(
    name: str,
    template: str,
    result: str,
    arguments: str,
    *,
    effect: bool = False,
    memory: bool = False,
    warp: bool = False,
) -> Any:
    """Return a PTX instruction as a function for kernels.

    Args:
        name: Name of the function, for error messages.
        template: Assembly; `$0`, `$1`, … are the results, then the arguments.
        result: Letters of the results.
        arguments: Letters of the arguments.
        effect: Whether the instruction must stay where it is, as loads must.
        memory: Whether no value of memory may be kept in a register across it.
        warp: Whether all lanes of a warp execute it together.
    """
    SIGNATURES[name] = Signature(result, arguments)
    constraints = [f"={_CONSTRAINTS[letter]}" for letter in result] + [_CONSTRAINTS[letter] for letter in arguments]
    if memory:
        constraints.append("~{memory}")
    returned, llvm = _result_types(result)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(llvm, [value.type for value in values])
        assembly = ir.InlineAsm(kind, template, ",".join(constraints), side_effect=effect)
        out = builder.call(assembly, values, attrs=("convergent",) if warp else ())
        if not result:
            return context.get_dummy_value()
        if len(result) == 1:
            return out
        parts = [builder.extract_value(out, index) for index in range(len(result))]
        return context.make_tuple(builder, returned, parts)

    names = ", ".join(f"a{index}" for index in range(len(arguments)))
    signature = returned(*[_NUMBA[letter] for letter in arguments])
    # Numba reads the names of an intrinsic's parameters, so the function is made from text.
    space: dict[str, Any] = {}
    exec(
        f"def {name}(typing, {names}):\n    return signature, generate\n",
        {"signature": signature, "generate": generate},
        space,
    )
    return intrinsic(space[name])


def _result_types(letters: str) -> tuple[Any, Any]:
    """Return Numba's and LLVM's type of a result."""
    if not letters:
        return types.void, ir.VoidType()
    if len(letters) == 1:
        return _NUMBA[letters], _LLVM[letters]
    return types.Tuple([_NUMBA[letter] for letter in letters]), ir.LiteralStructType(
        [_LLVM[letter] for letter in letters]
    )


def _load(name: str, template: str, result: str) -> Any:
    """Return a load from a global address."""
    return op(name, template, result, "l", effect=True)


def _store(name: str, template: str, value: str) -> Any:
    """Return a store to a global address, which comes first."""
    return op(name, template, "", "l" + value, effect=True, memory=True)


def _shared_load(name: str, template: str, result: str) -> Any:
    """Return a load from a shared address (u32)."""
    return op(name, template, result, "u", effect=True, memory=True)


def _shared_store(name: str, template: str, value: str) -> Any:
    """Return a store to a shared address (u32), which comes first."""
    return op(name, template, "", "u" + value, effect=True, memory=True)


def _sync(name: str, template: str, arguments: str = "") -> Any:
    """Return an instruction that orders memory accesses."""
    return op(name, template, "", arguments, effect=True, memory=True)


# Integers. dp4a_us: unsigned bytes by signed bytes.
dp4a_us = op("dp4a_us", "dp4a.u32.s32 $0, $1, $2, $3;", "i", "uui")
dp4a_ss = op("dp4a_ss", "dp4a.s32.s32 $0, $1, $2, $3;", "i", "uui")
prmt = op("prmt", "prmt.b32 $0, $1, $2, $3;", "u", "uuu")
min_i = op("min_i", "min.s32 $0, $1, $2;", "i", "ii")
max_i = op("max_i", "max.s32 $0, $1, $2;", "i", "ii")
min_u = op("min_u", "min.u32 $0, $1, $2;", "u", "uu")
max_u = op("max_u", "max.u32 $0, $1, $2;", "u", "uu")
divide_u = op("divide_u", "div.u32 $0, $1, $2;", "u", "uu")

# Float32. `+`, `-` and `*` are rounded one by one; `fma` rounds once. min_f and max_f ignore a NaN.
fma = op("fma", "fma.rn.f32 $0, $1, $2, $3;", "f", "fff")
min_f = op("min_f", "min.f32 $0, $1, $2;", "f", "ff")
max_f = op("max_f", "max.f32 $0, $1, $2;", "f", "ff")
abs_f = op("abs_f", "abs.f32 $0, $1;", "f", "f")
div = op("div", "div.rn.f32 $0, $1, $2;", "f", "ff")
sqrt = op("sqrt", "sqrt.rn.f32 $0, $1;", "f", "f")
# Approximations, about 1e-7 relative; results differ between the interpreter and a GPU.
ex2_approx = op("ex2_approx", "ex2.approx.ftz.f32 $0, $1;", "f", "f")
lg2_approx = op("lg2_approx", "lg2.approx.ftz.f32 $0, $1;", "f", "f")
rcp_approx = op("rcp_approx", "rcp.approx.ftz.f32 $0, $1;", "f", "f")
# Nearest integer, halves to even; NaN becomes 0.
round_i = op("round_i", "cvt.rni.s32.f32 $0, $1;", "i", "f")
bits_of = op("bits_of", "mov.b32 $0, $1;", "u", "f")
float_of_bits = op("float_of_bits", "mov.b32 $0, $1;", "f", "u")

# Halves. A half is the low 16 bits of a u; a pair is (low, high).
half_of = op("half_of", "{.reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.u32.u16 $0, h;}", "u", "f")
float_of_half = op("float_of_half", "{.reg .b16 h; cvt.u16.u32 h, $1; cvt.f32.f16 $0, h;}", "f", "u")
floats_of_pair = op(
    "floats_of_pair",
    "{.reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h;}",
    "ff",
    "u",
)
pair_of = op(  # pair_of(low, high), on every GPU
    "pair_of",
    "{.reg .b16 l, h; cvt.rn.f16.f32 l, $1; cvt.rn.f16.f32 h, $2; mov.b32 $0, {l, h};}",
    "u",
    "ff",
)
pack_f16x2 = op("pack_f16x2", "cvt.rn.f16x2.f32 $0, $1, $2;", "u", "ff")  # sm_80; (high, low)
sub_f16x2 = op("sub_f16x2", "sub.rn.f16x2 $0, $1, $2;", "u", "uu")
mul_f16x2 = op("mul_f16x2", "mul.rn.f16x2 $0, $1, $2;", "u", "uu")
# rest_f16x2(a, b, product): what the product of two pairs was rounded by.
rest_f16x2 = op("rest_f16x2", "{.reg .b32 t; neg.f16x2 t, $3; fma.rn.f16x2 $0, $1, $2, t;}", "u", "uuu")

# Weights: constant while the kernel runs. load4 passes the first-level cache by.
load4 = _load("load4", "ld.global.nc.L1::no_allocate.v4.u32 {$0,$1,$2,$3}, [$4];", "uuuu")
load4_cached = _load("load4_cached", "ld.global.nc.v4.u32 {$0,$1,$2,$3}, [$4];", "uuuu")
load4f_cached = _load("load4f_cached", "ld.global.nc.v4.f32 {$0,$1,$2,$3}, [$4];", "ffff")
load2 = _load("load2", "ld.global.nc.v2.u32 {$0,$1}, [$2];", "uu")
load1 = _load("load1", "ld.global.nc.u32 $0, [$1];", "u")
load_u16 = _load("load_u16", "{.reg .u16 t; ld.global.nc.u16 t, [$1]; cvt.u32.u16 $0, t;}", "u")
# Data of this pass: may have been written while this kernel started (dependent launch), or by it.
read4 = _load("read4", "ld.global.v4.u32 {$0,$1,$2,$3}, [$4];", "uuuu")
read4f = _load("read4f", "ld.global.v4.f32 {$0,$1,$2,$3}, [$4];", "ffff")
# Keys and values: read once, so they pass the first-level cache by.
read2_once = _load("read2_once", "ld.global.L1::no_allocate.v2.u32 {$0,$1}, [$2];", "uu")
read4_once = _load("read4_once", "ld.global.L1::no_allocate.v4.u32 {$0,$1,$2,$3}, [$4];", "uuuu")
read2 = _load("read2", "ld.global.v2.u32 {$0,$1}, [$2];", "uu")
read2f = _load("read2f", "ld.global.v2.f32 {$0,$1}, [$2];", "ff")
read1 = _load("read1", "ld.global.u32 $0, [$1];", "u")
read1i = _load("read1i", "ld.global.s32 $0, [$1];", "i")
load1f = _load("load1f", "ld.global.f32 $0, [$1];", "f")
read_u16 = _load("read_u16", "{.reg .u16 t; ld.global.u16 t, [$1]; cvt.u32.u16 $0, t;}", "u")
# Records {f32 scale, i32 sum} of activations.
read_scale = _load("read_scale", "{.reg .b32 t; ld.global.v2.b32 {t,$1}, [$2]; mov.b32 $0, t;}", "fi")

store1 = _store("store1", "st.global.u32 [$0], $1;", "u")
store1i = _store("store1i", "st.global.s32 [$0], $1;", "i")
store1f = _store("store1f", "st.global.f32 [$0], $1;", "f")
store2 = _store("store2", "st.global.v2.u32 [$0], {$1,$2};", "uu")
store2f = _store("store2f", "st.global.v2.f32 [$0], {$1,$2};", "ff")
store_scale = _store("store_scale", "{.reg .b32 t; mov.b32 t, $1; st.global.v2.b32 [$0], {t,$2};}", "fi")
store4 = _store("store4", "st.global.v4.u32 [$0], {$1,$2,$3,$4};", "uuuu")
store4f = _store("store4f", "st.global.v4.f32 [$0], {$1,$2,$3,$4};", "ffff")
store_u16 = _store("store_u16", "{.reg .u16 t; cvt.u16.u32 t, $1; st.global.u16 [$0], t;}", "u")
store_u8 = _store("store_u8", "{.reg .u16 t; cvt.u16.u32 t, $1; st.global.u8 [$0], t;}", "u")

# Between blocks. fetch_inc(address, last) wraps to 0 after `last`, so that a counter resets itself.
fetch_inc = op("fetch_inc", "atom.acq_rel.gpu.global.inc.u32 $0, [$1], $2;", "u", "lu", effect=True, memory=True)

# Shared memory by 32-bit addresses; shared_address takes the generic address of an array (`address_of`).
shared_address = op("shared_address", "{.reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t;}", "u", "l")
shared_load1 = _shared_load("shared_load1", "ld.shared.u32 $0, [$1];", "u")
shared_load1i = _shared_load("shared_load1i", "ld.shared.s32 $0, [$1];", "i")
shared_load1f = _shared_load("shared_load1f", "ld.shared.f32 $0, [$1];", "f")
shared_load2 = _shared_load("shared_load2", "ld.shared.v2.u32 {$0,$1}, [$2];", "uu")
shared_load2f = _shared_load("shared_load2f", "ld.shared.v2.f32 {$0,$1}, [$2];", "ff")
shared_load4 = _shared_load("shared_load4", "ld.shared.v4.u32 {$0,$1,$2,$3}, [$4];", "uuuu")
shared_load4f = _shared_load("shared_load4f", "ld.shared.v4.f32 {$0,$1,$2,$3}, [$4];", "ffff")
shared_load_scale = _shared_load(
    "shared_load_scale", "{.reg .b32 t; ld.shared.v2.b32 {t,$1}, [$2]; mov.b32 $0, t;}", "fi"
)
shared_store1 = _shared_store("shared_store1", "st.shared.u32 [$0], $1;", "u")
shared_store1i = _shared_store("shared_store1i", "st.shared.s32 [$0], $1;", "i")
shared_store1f = _shared_store("shared_store1f", "st.shared.f32 [$0], $1;", "f")
shared_store2 = _shared_store("shared_store2", "st.shared.v2.u32 [$0], {$1,$2};", "uu")
shared_store2f = _shared_store("shared_store2f", "st.shared.v2.f32 [$0], {$1,$2};", "ff")
shared_store4 = _shared_store("shared_store4", "st.shared.v4.u32 [$0], {$1,$2,$3,$4};", "uuuu")
shared_store4f = _shared_store("shared_store4f", "st.shared.v4.f32 [$0], {$1,$2,$3,$4};", "ffff")
shared_store_scale = _shared_store(
    "shared_store_scale", "{.reg .b32 t; mov.b32 t, $1; st.shared.v2.b32 [$0], {t,$2};}", "fi"
)
shared_store_u16 = _shared_store("shared_store_u16", "{.reg .u16 t; cvt.u16.u32 t, $1; st.shared.u16 [$0], t;}", "u")
shared_store_u8 = _shared_store("shared_store_u8", "{.reg .u16 t; cvt.u16.u32 t, $1; st.shared.u8 [$0], t;}", "u")


@intrinsic
def address_of(typing, array):
    """Return the generic address of a shared or local array as u64."""

    def generate(context, builder, signature, values):
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return A(array), generate


# Asynchronous copies of 16 bytes, sm_80.
copy_async = op("copy_async", "cp.async.cg.shared.global [$0], [$1], 16;", "", "ul", effect=True, memory=True)
copy_commit = _sync("copy_commit", "cp.async.commit_group;")
# copy_waitN: at most N groups are still on their way.
copy_wait0 = _sync("copy_wait0", "cp.async.wait_group 0;")
copy_wait2 = _sync("copy_wait2", "cp.async.wait_group 2;")


def _matrix_load(name: str, options: str, count: int) -> Any:
    """Return an ldmatrix of `count` 8 × 8 matrices of 16 bits."""
    registers = ",".join(f"${index}" for index in range(count))
    template = f"ldmatrix.sync.aligned.m8n8.x{count}{options}.shared.b16 {{{registers}}}, [${count}];"
    return op(name, template, "u" * count, "u", effect=True, memory=True, warp=True)


ldmatrix4_trans = _matrix_load("ldmatrix4_trans", ".trans", 4)


def _mma(name: str, shape: str, kinds: str, a: int, b: int, c: int, result: str) -> Any:
    """Return a matrix product of a warp: registers of A, of B, then the sums.

    Args:
        name: Name of the function.
        shape: Such as "m16n8k32".
        kinds: Types of D, A, B and C.
        a: Registers of A per lane.
        b: Registers of B per lane.
        c: Registers of C and D per lane.
        result: Letter of the sums.
    """
    places, first = [], 0
    for count in (c, a, b, c):
        places.append("{" + ",".join(f"${first + index}" for index in range(count)) + "}")
        first += count
    template = f"mma.sync.aligned.{shape}.row.col.{kinds} {', '.join(places)};"
    return op(name, template, result * c, "u" * (a + b) + result * c, warp=True)


mma_s8 = _mma("mma_s8", "m16n8k32", "s32.s8.s8.s32", 4, 2, 4, "i")  # sm_80
mma_u8s8 = _mma("mma_u8s8", "m16n8k32", "s32.u8.s8.s32", 4, 2, 4, "i")  # sm_80
mma_s8_k16 = _mma("mma_s8_k16", "m8n8k16", "s32.s8.s8.s32", 1, 1, 2, "i")
mma_u8s8_k16 = _mma("mma_u8s8_k16", "m8n8k16", "s32.u8.s8.s32", 1, 1, 2, "i")
mma_f16 = _mma("mma_f16", "m16n8k16", "f32.f16.f16.f32", 4, 2, 4, "f")  # sm_80
mma_f16_k8 = _mma("mma_f16_k8", "m16n8k8", "f32.f16.f16.f32", 2, 1, 4, "f")

# Lanes of a full warp.
shuffle_xor = op("shuffle_xor", "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "u", "uu", effect=True, warp=True)
shuffle_xor_f = op(
    "shuffle_xor_f", "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "f", "fu", effect=True, warp=True
)
shuffle_xor_i = op(
    "shuffle_xor_i", "shfl.sync.bfly.b32 $0, $1, $2, 0x1f, 0xffffffff;", "i", "iu", effect=True, warp=True
)
shuffle_i = op("shuffle_i", "shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", "i", "iu", effect=True, warp=True)

# Ahead of loads, and between kernels.
prefetch_l2 = op("prefetch_l2", "prefetch.global.L2 [$0];", "", "l", effect=True)
wait_for_previous = _sync("wait_for_previous", "griddepcontrol.wait;")  # sm_90
let_next_start = _sync("let_next_start", "griddepcontrol.launch_dependents;")  # sm_90
