"""Extending a saved sequence of llama.cpp's KV cache."""

from __future__ import annotations

import struct

import pytest

from benchmarks.llama_state import IK_LLAMA_CPP, LLAMA_CPP, StateFormatError, StateLayout, repeat_state, repeated

ROW, ELEMENT, WIDTH = 6, 2, 3  # bytes of a K row, of a V element, elements of a V row


def saved_state(cells: int, *, transposed: bool, layers: int = 2, layout: StateLayout = LLAMA_CPP) -> bytes:
    """Return the state that a library would save; byte values encode layer, cell and position."""
    ik = layout is IK_LLAMA_CPP
    pieces = [struct.pack("<I", cells)] if ik else [b"llamaseq", struct.pack("<2I", 1, cells)]
    pieces += [struct.pack("<iI", cell, 0) if ik else struct.pack("<iIi", cell, 1, 0) for cell in range(cells)]
    pieces.append(struct.pack("<2I", transposed, layers))
    keys = [bytes(100 * layer + cell % 4 for cell in range(cells) for _ in range(ROW)) for layer in range(layers)]
    pieces += [struct.pack("<IQ", 1, ROW) + rows for rows in keys]
    for layer in range(layers):
        if transposed:
            pieces.append(struct.pack("<3I", 1, ELEMENT, WIDTH))
            pieces += [
                bytes(100 * layer + 10 * column + cell % 4 for cell in range(cells) for _ in range(ELEMENT))
                for column in range(WIDTH)
            ]
        else:
            pieces.append(struct.pack("<IQ", 1, ROW) + keys[layer])
    return b"".join([*pieces, bytes(4)] if ik else pieces)


@pytest.mark.parametrize("layout", [LLAMA_CPP, IK_LLAMA_CPP])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("length", [1, 4, 5, 8, 11])
def test_cells_repeat(transposed: bool, length: int, layout: StateLayout) -> None:
    state = saved_state(4, transposed=transposed, layout=layout)
    assert repeat_state(state, length, layout) == saved_state(length, transposed=transposed, layout=layout)


def test_the_layouts_are_not_mistaken_for_each_other() -> None:
    for own, other in ((LLAMA_CPP, IK_LLAMA_CPP), (IK_LLAMA_CPP, LLAMA_CPP)):
        with pytest.raises(StateFormatError):
            repeat_state(saved_state(4, transposed=True, layout=own), 8, other)
    recurrent = saved_state(4, transposed=True, layout=IK_LLAMA_CPP)[:-4] + struct.pack("<I", 1)
    with pytest.raises(StateFormatError, match="00000000 expected behind the layers"):
        repeat_state(recurrent, 8, IK_LLAMA_CPP)


def test_a_state_without_cells_is_refused() -> None:
    with pytest.raises(StateFormatError, match="the state has no cells"):
        repeat_state(saved_state(0, transposed=True), 8)


def test_repeated() -> None:
    assert repeated(b"aabb", 2, 3) == b"aabbaa"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda good: good[:-1], "expected at"),
        (lambda good: good + b"x", "1 bytes are left over"),
        (lambda good: good[:8] + struct.pack("<I", 2) + good[12:], "2 streams"),
        (lambda good: good[:16] + struct.pack("<i", 7) + good[20:], "cell 0 is not position 0"),
        (lambda good: good[:64] + struct.pack("<I", 9) + good[68:], "V is transposed: 9"),
    ],
)
def test_another_layout_is_refused(damage, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(StateFormatError, match=message):
        repeat_state(damage(saved_state(4, transposed=True)), 8)
