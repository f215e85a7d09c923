"""Machine code of the matrix-vector kernels: the instructions that they stand for, and how many a weight word takes.

A word is 32 bits of codes: 8 weights of 4 bits or 4 of 8 bits.
"""

from __future__ import annotations

import numpy as np
import pytest

from quant.formats import FORMATS, IntegerFormat
from quant.formats.q4 import CODEBOOK
from tests.cuda.machine_code import ARCHITECTURES, MachineCode, Operation, machine_code, needs_cuda_dev, opcodes

STAGES = ("norm_gemv", "gemv", "norm_gate_up")
DOTS_PER_WORD = {"q4": 4, "q8": 1, "lin4": 2, "lin8": 1}
MOST_PER_WORD = {  # 10 % above what the first drafts took: 14.7 for q4, 2.14 for q8, 29.5 for q4 and 8 tokens
    "q4_r1": 16.2,
    "q8_r1": 2.35,
    "lin4_r1": 9,
    "lin8_r1": 2.9,
    "q4_r2": 27,
    "q8_r2": 4.3,
    "lin4_r2": 14,
    "lin8_r2": 5,
    "q4_r8": 32.4,
    "q8_r8": 8.5,
    "lin4_r8": 24,
    "lin8_r8": 11,
}


def _hot_loop(stage: str, kind: str, architecture: int, opcode: str) -> list[Operation]:
    name, fmt = f"{stage}_{kind}", kind.partition("_")[0]
    code: MachineCode = machine_code(f"gemv_{fmt}", architecture)[name]
    return code.hot_loop(opcode)


@pytest.mark.slow
@needs_cuda_dev
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("kind", MOST_PER_WORD)
def test_instructions_per_word_of_codes(kind: str, architecture: int) -> None:
    fmt, tokens = kind.split("_r")
    for stage in STAGES:
        if tokens == "8":
            loop = _hot_loop(stage, kind, architecture, "IMMA")
            # A group of 32 columns of a lane is 4 words of 4-bit codes or 8 words of 8-bit codes.
            groups = sum(each.opcode.startswith("IMMA") for each in loop) / (2 if architecture >= 80 else 8)
            words = groups * (4 if DOTS_PER_WORD[fmt] > 1 else 8)
        else:
            loop = _hot_loop(stage, kind, architecture, "IDP")
            words = opcodes(loop)["IDP"] / (DOTS_PER_WORD[fmt] * int(tokens))
        assert words > 0
        assert len(loop) / words <= MOST_PER_WORD[kind], (stage, len(loop), words)


@pytest.mark.slow
@needs_cuda_dev
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("fmt", DOTS_PER_WORD)
def test_the_inner_loops_are_what_they_are_meant_to_be(fmt: str, architecture: int) -> None:
    lines = 4 if DOTS_PER_WORD[fmt] > 1 else 8
    for stage in STAGES:
        for tokens in (1, 2):
            counts = opcodes(_hot_loop(stage, f"{fmt}_r{tokens}", architecture, "IDP"), 5)
            weights = sum(n for name, n in counts.items() if name.startswith("LDG.E") and ".128.CONSTANT" in name)
            dots = sum(n for name, n in counts.items() if name.startswith("IDP.4A"))
            assert weights == lines
            assert dots == 4 * lines * DOTS_PER_WORD[fmt] * tokens
        loop = _hot_loop(stage, f"{fmt}_r8", architecture, "IMMA")
        shape = "IMMA.16832" if architecture >= 80 else "IMMA.8816"
        products = [each.opcode for each in loop if each.opcode.startswith("IMMA")]
        assert all(name.startswith(shape) for name in products)
        weights = sum(each.opcode.startswith("LDG.E") and ".128.CONSTANT" in each.opcode for each in loop)
        loads_per_group, products_per_group = (1 if lines == 4 else 2), (2 if architecture >= 80 else 8)
        assert weights * products_per_group == len(products) * loads_per_group


@pytest.mark.slow
@needs_cuda_dev
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_three_blocks_fit_for_one_token(architecture: int) -> None:
    for fmt in DOTS_PER_WORD:
        code = machine_code(f"gemv_{fmt}", architecture)
        assert all(code[f"{stage}_{fmt}_r1"].registers <= 80 for stage in STAGES)


def test_levels_of_q4_have_the_signs_that_the_look_up_needs() -> None:
    """Two look-ups add up to an entry because codes 0 to 7 stand for negative levels, and codes 8 to 15 do not."""
    assert CODEBOOK[:8].max() < 0 <= CODEBOOK[8:].min()
    assert CODEBOOK[8:].max() < 127


@needs_cuda_dev
def test_two_look_ups_add_up_to_an_entry() -> None:
    from qwchat.cuda.kernels.integer_formats import arithmetic, look_up_words

    fmt = FORMATS["q4"]
    assert isinstance(fmt, IntegerFormat)
    words = np.array(look_up_words(fmt.table), np.uint32).view(np.int8)
    for code in range(16):
        low = words[code] if code < 8 else -1
        high = words[code] if code >= 8 else 0
        assert int(low) + int(high) == CODEBOOK[code]
    assert arithmetic(fmt).table[1] == tuple(CODEBOOK.view(np.uint32))
    for one, other in ((0, 8), (7, 15)):
        table = list(fmt.table)
        table[one], table[other] = table[other], table[one]
        with pytest.raises(ValueError, match="negative entries"):
            look_up_words(tuple(table))
