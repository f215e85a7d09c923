"""Machine code of prefill: tensor cores, 128-bit loads, and how many instructions stand between products."""

from __future__ import annotations

import pytest

from tests.cuda.machine_code import ARCHITECTURES, MachineCode, Operation, machine_code, needs_cuda_dev

pytestmark = [pytest.mark.slow, needs_cuda_dev]
FORMATS = ("q4", "q8", "lin4", "lin8", "bf16", "f32")
PRODUCTS = 32
"""Products of 16 × 8 × 16 that multiply 32 rows, 64 tokens and 32 columns; of 16 × 8 × 8 on Turing, twice as many."""

DERIVED = 185
"""Instructions for these that the design allows for q4: as many as the tensor cores take time for."""


def count(loop: list[Operation], opcode: str) -> int:
    return sum(each.opcode.startswith(opcode) for each in loop)


def issued(loop: list[Operation]) -> int:
    """Return the instructions of a loop, without those that only wait."""
    return sum(not each.opcode.startswith("NOP") for each in loop)


def assert_tensor_loop(code: MachineCode, architecture: int, products: int) -> list[Operation]:
    loop = code.hot_loop("HMMA")
    shape = "HMMA.1688.F32" if architecture < 80 else "HMMA.16816.F32"
    assert count(loop, "HMMA") == count(loop, shape) == products * (2 if architecture < 80 else 1)
    assert count(loop, "LDL") == count(loop, "STL") == 0
    return loop


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_product_of_matrices(name: str, architecture: int) -> None:
    code = machine_code("gemm", architecture)[f"gemm_{name}"]
    loop = assert_tensor_loop(code, architecture, PRODUCTS)
    turing = architecture < 80
    assert issued(loop) <= 1.1 * (DERIVED + PRODUCTS * turing)
    assert count(loop, "BAR") == 1
    assert count(loop, "LDS") == 8
    assert all(".128" in each.opcode for each in loop if each.opcode.startswith("LDS"))
    wide = [each for each in loop if each.opcode.startswith("LDG.") and ".128" in each.opcode]
    copies = 2 if turing else 0
    assert len(wide) == copies + {"q4": 1, "q8": 2, "lin4": 1, "lin8": 2, "bf16": 0, "f32": 8}[name]
    assert count(loop, "LDGSTS") == (0 if turing else 2)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("kind", ["f16", "q8"])
def test_attention(kind: str, head_dim: int, architecture: int) -> None:
    code = machine_code("prefill_attention", architecture)[f"prefill_attention_{kind}_d{head_dim}"]
    loop = assert_tensor_loop(code, architecture, 64)
    # Keys by 128-bit loads, values by transposed matrix loads: 4 KB of each per warp and 64 products.
    assert count(loop, "LDS.") == count(loop, "LDSM") == 16
    assert all(".128" in each.opcode for each in loop if each.opcode.startswith("LDS."))
    assert all(".MT88.4" in each.opcode for each in loop if each.opcode.startswith("LDSM"))
    assert count(loop, "BAR") == 1
    if kind == "f16" and architecture >= 80:
        assert count(loop, "LDGSTS") == 8
        assert issued(loop) <= 7 * 64
