"""Extend the saved state of one sequence in the KV cache of llama.cpp or ik_llama.cpp without computing.

Layout (llama-kv-cache.cpp, `state_write`; little-endian): two words of header, the number of streams (1), the number
of cells; for each cell its position, the number of its sequences (1) and the sequence; whether V is transposed, the
number of layers; for each layer K: type, row bytes u64, rows; for each layer V the same, or, transposed: type, element
bytes, elements per cell, and one run over the cells for each element.

ik_llama.cpp keeps an older layout: without the header and the number of streams, and without sequences in the cells
(their number is 0). Behind the layers there is one more word, the number of recurrent states (0).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True)
class StateLayout:
    """What differs between the libraries.

    Attributes:
        header: bytes before the number of streams; 0 means that the number is left out as well.
        cell: fields of a cell; the first one is its position.
        sequences: expected values of the other fields of a cell.
        end: expected bytes behind the layers.
    """

    header: int
    cell: struct.Struct
    sequences: tuple[int, ...]
    end: bytes


LLAMA_CPP = StateLayout(8, struct.Struct("<iIi"), (1, 0), b"")
IK_LLAMA_CPP = StateLayout(0, struct.Struct("<iI"), (0,), bytes(4))


class StateFormatError(ValueError):
    """The saved state does not have the layout described above."""


class _Reader:
    def __init__(self, state: bytes) -> None:
        self._state, self._at = memoryview(state), 0

    def take(self, size: int) -> bytes:
        piece = bytes(self._state[self._at : self._at + size])
        if len(piece) != size:
            raise StateFormatError(f"{size} bytes expected at {self._at}, {len(piece)} left")
        self._at += size
        return piece

    def words(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}I", self.take(4 * count))

    @property
    def left(self) -> int:
        return len(self._state) - self._at


def repeated(piece: bytes, unit: int, count: int) -> bytes:
    """Return the first `count` units of `unit` bytes of an endless repetition of `piece`."""
    return (piece * -(-unit * count // len(piece)))[: unit * count]


def repeat_state(state: bytes, length: int, layout: StateLayout = LLAMA_CPP) -> bytes:
    """Return the state of a few cells extended to `length` cells at positions 0, 1, …, with repeated keys and values.

    Raises StateFormatError if `state` has another layout.
    """
    reader = _Reader(state)
    pieces = []
    if layout.header:
        pieces.append(reader.take(layout.header))
        (streams,) = reader.words(1)
        if streams != 1:
            raise StateFormatError(f"{streams} streams; expected one")
        pieces.append(struct.pack("<I", 1))
    (count,) = reader.words(1)
    if count == 0:
        raise StateFormatError("the state has no cells")
    for position in range(count):
        if layout.cell.unpack(reader.take(layout.cell.size)) != (position, *layout.sequences):
            raise StateFormatError(f"cell {position} is not position {position} of sequence 0")
    pieces.append(struct.pack("<I", length))
    pieces += [layout.cell.pack(position, *layout.sequences) for position in range(length)]
    transposed, layers = reader.words(2)
    if transposed not in (0, 1):
        raise StateFormatError(f"V is transposed: {transposed}; expected 0 or 1")
    pieces.append(struct.pack("<2I", transposed, layers))
    for index in range(2 * layers):
        if transposed and index >= layers:
            head = reader.take(12)
            _, size, rows = struct.unpack("<3I", head)
        else:
            head = reader.take(12)
            _, size = struct.unpack("<IQ", head)
            rows = 1
        pieces.append(head)
        pieces.extend(repeated(reader.take(size * count), size, length) for _ in range(rows))
    if reader.take(len(layout.end)) != layout.end:
        raise StateFormatError(f"{layout.end.hex()} expected behind the layers")
    pieces.append(layout.end)
    if reader.left:
        raise StateFormatError(f"{reader.left} bytes are left over")
    return b"".join(pieces)
