"""Machine code of every kernel for every GPU: it fits its launch bounds and spills nothing."""

from __future__ import annotations

import pytest

from qwchat.cuda.manifest import kernels
from tests.cuda.machine_code import ARCHITECTURES, assemble, machine_code, needs_cuda_dev, opcodes, pipes

pytestmark = [pytest.mark.slow, needs_cuda_dev]
UNITS = sorted({record.unit for record in kernels().values()})
REGISTERS_OF_A_MULTIPROCESSOR = 65536


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unit", UNITS)
def test_kernels_compile_without_spills(unit: str, architecture: int) -> None:
    compiled = machine_code(unit, architecture)
    records = {name: record for name, record in kernels().items() if record.unit == unit}
    assert set(compiled) == set(records)
    for name, code in compiled.items():
        assert code.spills == 0, name
        in_loops = [each.text for loop in code.loops() for each in loop if each.opcode.startswith(("LDL", "STL"))]
        assert in_loops == [], name
        # Registers are given out per warp, in steps of 8 per thread.
        threads = records[name].threads * records[name].blocks_per_sm
        assert -(-code.registers // 8) * 8 * threads <= REGISTERS_OF_A_MULTIPROCESSOR, name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_copy_moves_128_bits_at_a_time(architecture: int) -> None:
    code = machine_code("copy", architecture)["copy_words"]
    loop = code.hot_loop("LDG")
    assert [each.opcode for each in loop if each.opcode.startswith(("LDG", "STG"))] != []
    assert all(".128" in each.opcode for each in loop if each.opcode.startswith(("LDG", "STG")))


def test_spills_and_loops_are_found() -> None:
    """Compile a kernel that needs more registers than it may have."""
    sums = range(40)
    ptx = f"""
.version 7.4
.target sm_80
.address_size 64
.visible .entry many(.param .u64 many_param_0, .param .u32 many_param_1)
.maxntid 1024, 1, 1
.minnctapersm 2
{{
    .reg .pred %p<2>; .reg .b32 %r<3>; .reg .b64 %rd<2>; .reg .f32 %f<{2 * len(sums)}>;
    ld.param.u64 %rd1, [many_param_0];
    ld.param.u32 %r1, [many_param_1];
    {" ".join(f"ld.global.f32 %f{i}, [%rd1+{4 * i}];" for i in sums)}
$again:
    {" ".join(f"fma.rn.f32 %f{i}, %f{i}, %f{(i + 1) % len(sums)}, %f{(i + 7) % len(sums)};" for i in sums)}
    add.s32 %r1, %r1, -1;
    setp.ne.s32 %p1, %r1, 0;
    @%p1 bra $again;
    {" ".join(f"st.global.f32 [%rd1+{4 * i}], %f{i};" for i in sums)}
    ret;
}}
"""
    code = assemble(ptx, 80)["many"]
    assert code.spills > 0
    assert code.registers <= 32
    loop = code.hot_loop("FFMA")
    assert opcodes(loop)["FFMA"] % len(sums) == 0
    assert pipes(loop)["fma"] >= len(sums)
    assert any(each.opcode.startswith("LDL") for each in loop)
