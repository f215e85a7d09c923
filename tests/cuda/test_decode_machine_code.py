"""Machine code of decode attention and of the candidates' kernel: loads, tensor cores, instructions of the hot loop."""

from __future__ import annotations

import pytest

from tests.cuda.machine_code import ARCHITECTURES, Operation, machine_code, needs_cuda_dev

pytestmark = [pytest.mark.slow, needs_cuda_dev]
# Loads of 128 and of 64 bits, and most instructions, for 16 positions of a warp: keys, values, and scales of both.
LOOPS = {
    "attend_f16_d64": (8, 0, 300),
    "attend_f16_d128": (16, 0, 440),
    "attend_q8_d64": (2, 8, 430),
    "attend_q8_d128": (12, 0, 700),
}


def tensor(loop: list[Operation]) -> int:
    return sum(each.opcode.startswith(("HMMA", "IMMA")) for each in loop)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("unit", sorted(LOOPS))
def test_the_hot_loop_of_attention(unit: str, architecture: int) -> None:
    code = machine_code(unit, architecture)[unit]
    # The positions that all tokens see: the shortest loop on tensor cores.
    loop = min((loop for loop in code.loops() if tensor(loop)), key=len)
    wide, half, most = LOOPS[unit]
    loads = [each.opcode for each in loop if each.opcode.startswith("LDG")]
    assert sum(".128" in load for load in loads) == wide
    assert sum(".64" in load for load in loads) == half
    assert len(loads) == wide + half
    assert len(loop) <= most
    head_dim = int(unit.rpartition("d")[2])
    # Weights and values, and what rounding to halves takes from them (keys and values of an f16 cache are halves).
    halves, integers = (head_dim // 8 * 3, head_dim // 8) if "q8" in unit else (head_dim // 8 * 2 + head_dim // 4, 0)
    if architecture == 75:  # smaller products
        halves, integers = 2 * halves, 4 * integers
    assert sum(each.opcode.startswith("HMMA") for each in loop) == halves
    assert sum(each.opcode.startswith("IMMA") for each in loop) == integers


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logits_are_read_128_bits_at_a_time(architecture: int) -> None:
    code = machine_code("candidates", architecture)["candidates"]
    assert sum(".128" in each.opcode for each in code.operations if each.opcode.startswith("LDG")) >= 4


@pytest.mark.parametrize("unit", [*sorted(LOOPS), "candidates"])
def test_kernels_wait_for_the_one_before(unit: str) -> None:
    code = machine_code(unit, 90)[unit]
    opcodes = [each.opcode for each in code.operations]
    waits, stores = opcodes.index("ACQBULK"), [i for i, each in enumerate(opcodes) if each.startswith("STG")]
    assert "PREEXIT" in opcodes[waits:]
    assert all(place > waits for place in stores)
