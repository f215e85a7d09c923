"""Snapshots of the KV cache: damaged ones must be refused, and the reply must be that without a snapshot."""

from __future__ import annotations

import struct
import zlib
from random import Random

from tests.fuzz import mutations
from tests.fuzz.base import QUESTION, SESSION, Base
from tests.fuzz.case import OK, RUNTIME, TOO_LONG, Case, Content, Files, command

NAME = "snapshots"
FILE = f"sessions/{SESSION}/kv.snapshot"
_FIELDS = {"magic": (0, 8), "version": (8, 4), "kind": (12, 8), "model": (20, 16), "layout": (36, 32)}
_FIELDS |= {"layers": (68, 4), "positions": (72, 4)}
_HEAD = 76


def make(random: Random, number: int, base: Base) -> Case:
    """Make one case."""
    data = (base.session / "kv.snapshot").read_bytes()
    kind = random.randrange(10)
    content: Content
    resummed = False
    if kind < 4:
        title, content = "damaged", mutations.mutate_bytes(random, data)
    elif kind < 6:
        title, content = "another head", _head(random, data)
    elif kind < 8:
        title, content, resummed = "another content, with its sums", with_checksums(_other_contents(random, data)), True
    else:
        content = mutations.strange_file(random, data)
        title = type(content).__name__
    mode = random.choice(("auto", "on", "on", "off"))
    answer = (base.session / "answer").read_text(encoding="utf-8")
    # With correct checksums the program must accept any contents, so only its end is checked.
    asked = command(
        *("-p", "and then?", "-m", "{case}/model", "--resume", SESSION, "--no-save", "--snapshot", mode, *QUESTION),
        codes=(OK, RUNTIME, 3, TOO_LONG) if resummed else (OK,),
        text=None if resummed else answer,
    )
    files: Files = {FILE: content}
    copies = (("model", base.model), (f"sessions/{SESSION}", base.session))
    return Case(NAME, number, title, files, (asked,), copies=copies)


def _head(random: Random, data: bytes) -> bytes:
    changed = bytearray(data)
    name = random.choice(list(_FIELDS))
    start, size = _FIELDS[name]
    changed[start : start + size] = random.choice(
        (
            bytes(size),
            b"\xff" * size,
            random.randbytes(size),
            random.choice((1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1)).to_bytes(4, "little").ljust(size, b"\0")[:size],
        )
    )
    return bytes(changed) if random.random() < 0.3 else with_checksums(bytes(changed))


def _other_contents(random: Random, data: bytes) -> bytes:
    """Return the snapshot with other rows or other token ids."""
    changed = bytearray(data)
    layers, positions = counts(data)
    for _ in range(random.choice((1, 5, 50))):
        if random.random() < 0.3:
            at = _HEAD + 4 * layers + 4 * random.randrange(positions)
            changed[at : at + 4] = random.choice((0, 5, 287, 288, 1 << 20, (1 << 32) - 1)).to_bytes(4, "little")
        else:
            at = rows_start(data) + 4 * random.randrange((len(data) - rows_start(data)) // 4)
            changed[at : at + 4] = struct.pack("<f", random.choice((float("nan"), float("inf"), 3e38, 0.0, -1e-40)))
    return bytes(changed)


def counts(data: bytes) -> tuple[int, int]:
    """Return the layers and positions that the header states."""
    return int.from_bytes(data[68:72], "little"), int.from_bytes(data[72:76], "little")


def rows_start(data: bytes) -> int:
    """Return the offset of the first row."""
    layers, positions = counts(data)
    return -(-(_HEAD + 4 * layers + 4 * positions + 4) // 64) * 64


def with_checksums(data: bytes) -> bytes:
    """Return `data` with correct checksums, as far as its header makes sense."""
    layers, positions = counts(data)
    start = rows_start(data)
    if not 0 < layers < 100 or start >= len(data):
        return data
    changed = bytearray(data)
    each = (len(data) - start) // layers
    for layer in range(layers):
        rows = data[start + layer * each : start + (layer + 1) * each]
        changed[_HEAD + 4 * layer : _HEAD + 4 * layer + 4] = zlib.crc32(rows).to_bytes(4, "little")
    end = _HEAD + 4 * layers + 4 * positions
    changed[end : end + 4] = zlib.crc32(bytes(changed[:end])).to_bytes(4, "little")
    return bytes(changed)
