"""Kernels in PTX written by hand, for tests of the interpreter."""

from __future__ import annotations

import re

import numpy as np

from tests.cuda.interpreter import Kernel, Memory

HEADER = ".version 8.0\n.target sm_90\n.address_size 64\n"
"""So that a GPU runs the same kernels."""


def kernel_text(body: str, pointers: int = 2, before: str = "") -> str:
    """Return a kernel `hand` with addresses p0, p1, … and the thread's numbers in `thread` and `block`.

    Registers that begin with r, d, f, p and q in the body are declared as b32, b64, f32, predicate and b16.
    """
    kinds = {"r": "b32", "d": "b64", "f": "f32", "p": "pred", "q": "b16"}
    names = sorted(set(re.findall(r"%([rdfpq]\d+)\b", body)))
    lines = [f".reg .{kinds[name[0]]} %{name};" for name in names]
    lines += [".reg .b32 thread, block;", "mov.u32 thread, %tid.x;", "mov.u32 block, %ctaid.x;"]
    for index in range(pointers):
        lines += [f".reg .b64 p{index};", f"ld.param.u64 p{index}, [hand_param_{index}];"]
    parameters = ", ".join(f".param .u64 hand_param_{index}" for index in range(pointers))
    return f"{HEADER}{before}\n.visible .entry hand({parameters})\n{{\n" + "\n".join(lines) + f"\n{body}\nret;\n}}\n"


def run(
    body: str, *arrays: np.ndarray, grid: int = 1, threads: int = 32, before: str = "", **options
) -> list[np.ndarray]:
    """Run a kernel of `kernel_text` on copies of arrays. Return what they hold afterwards."""
    memory = Memory()
    places = [memory.place(array) for array in arrays]
    Kernel(kernel_text(body, len(arrays), before), "hand").run(memory, grid, threads, *places, **options)
    return [memory.back(place, array.dtype, array.shape) for place, array in zip(places, arrays, strict=True)]


SHARED = ".shared .align 16 .b8 buffer[1024];"

BLOCK_SUM = """
    mul.wide.u32 %d1, thread, 4;
    add.s64 %d2, p0, %d1;
    ld.global.f32 %f1, [%d2];
    shfl.sync.bfly.b32 %f2, %f1, 16, 31, -1;
    add.rn.f32 %f1, %f1, %f2;
    shfl.sync.bfly.b32 %f2, %f1, 8, 31, -1;
    add.rn.f32 %f1, %f1, %f2;
    shfl.sync.bfly.b32 %f2, %f1, 4, 31, -1;
    add.rn.f32 %f1, %f1, %f2;
    shfl.sync.bfly.b32 %f2, %f1, 2, 31, -1;
    add.rn.f32 %f1, %f1, %f2;
    shfl.sync.bfly.b32 %f2, %f1, 1, 31, -1;
    add.rn.f32 %f1, %f1, %f2;
    and.b32 %r1, thread, 31;
    setp.ne.s32 %p1, %r1, 0;
    shr.u32 %r2, thread, 5;
    shl.b32 %r2, %r2, 2;
    @%p1 bra $stored;
    st.shared.f32 [%r2+64], %f1;
$stored:
    bar.sync 0;
    setp.ne.s32 %p2, thread, 0;
    @%p2 bra $end;
    ld.shared.f32 %f3, [buffer+64];
    ld.shared.f32 %f4, [buffer+68];
    sub.rn.f32 %f5, %f3, %f4;
    st.global.f32 [p1], %f5;
$end:
"""
"""Two warps: the sum of the first warp's 32 numbers less that of the second's."""
