"""Emulate the `neon` level: its instructions in plain LLVM, written after Arm's architecture manual.

`python -m tests.cpu.kernels.emulated_neon` prints the digest of `tests.cpu.kernels.test_levels`. `QWCHAT_CACHE` must
name a folder of its own, since the code is not what the level compiles to on a real machine.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from quant.native import simd_level
from qwchat.cpu.kernels import simd
from qwchat.cpu.kernels.simd import I8, I32

SDOT = "llvm.aarch64.neon.sdot.v4i32.v16i8"
TBL = "llvm.aarch64.neon.tbl1.v16i8"


def sdot(builder: Any, total: Any, a: Any, b: Any) -> Any:
    """Emit SDOT (vector): add the products of its four signed bytes to each 32-bit lane."""
    wide = ir.VectorType(I32, 16)
    products = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    for byte in range(4):
        lanes = ir.Constant(ir.VectorType(I32, 4), [4 * lane + byte for lane in range(4)])
        total = builder.add(total, builder.shuffle_vector(products, products, lanes))
    return total


def tbl(builder: Any, table: Any, indices: Any) -> Any:
    """Emit TBL with one register: the byte at each index, 0 for an index above 15."""
    result = ir.Constant(ir.VectorType(I8, 16), [0] * 16)
    for lane in range(16):
        index = builder.extract_element(indices, I32(lane))
        inside = builder.icmp_unsigned("<", index, I8(16))
        found = builder.extract_element(table, builder.and_(index, I8(15)))
        result = builder.insert_element(result, builder.select(inside, found, I8(0)), I32(lane))
    return result


def emulate(used: set[str]) -> None:
    """Make `neon` the level in force, and collect in `used` the names of its instructions that are emitted."""
    plain = simd.emit_call

    def emit_call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
        if "aarch64" not in name:
            return plain(builder, name, result, *arguments)
        used.add(name)
        return {SDOT: sdot, TBL: tbl}[name](builder, *arguments)

    simd_level.current_level = lambda: "neon"
    simd.emit_call = emit_call


if __name__ == "__main__":
    instructions: set[str] = set()
    emulate(instructions)
    from tests.cpu.kernels.test_levels import digest

    print(digest(), *sorted(instructions))
