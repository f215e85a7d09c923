"""Storage types of GGUF tensors: numbers, names and block sizes (ggml.h and ggml-common.h of llama.cpp)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockType:
    """Storage type of a tensor. A row consists of blocks of consecutive weights.

    Attributes:
        number: number of the type in files.
        name: name in lower case, such as "q4_k".
        weights: weights per block; 1 for floats.
        block_bytes: bytes per block.
    """

    number: int
    name: str
    weights: int
    block_bytes: int


BLOCK_TYPES = {
    kind.number: kind
    for kind in (
        BlockType(0, "f32", 1, 4),
        BlockType(1, "f16", 1, 2),
        BlockType(2, "q4_0", 32, 18),
        BlockType(3, "q4_1", 32, 20),
        BlockType(6, "q5_0", 32, 22),
        BlockType(7, "q5_1", 32, 24),
        BlockType(8, "q8_0", 32, 34),
        BlockType(10, "q2_k", 256, 84),
        BlockType(11, "q3_k", 256, 110),
        BlockType(12, "q4_k", 256, 144),
        BlockType(13, "q5_k", 256, 176),
        BlockType(14, "q6_k", 256, 210),
        BlockType(20, "iq4_nl", 32, 18),
        BlockType(23, "iq4_xs", 256, 136),
        BlockType(30, "bf16", 1, 2),
    )
}
"""Supported types by number."""

OTHER_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
"""Names of types that are not supported, for messages."""
