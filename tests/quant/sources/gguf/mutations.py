"""Damage and disguise GGUF files."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz import mutations
from tests.quant.sources.gguf.files import Stored, Typed, gguf_file
from tests.quant.sources.gguf.models import content_of

Pair = tuple[str | bytes, Any]
Named = tuple[str | bytes, Stored]
_COUNTS = (0, 1, 2, 1 << 16, 1 << 24, 1 << 31, (1 << 32) - 1, 1 << 32, 1 << 61, 1 << 63, (1 << 64) - 1)
_NUMBERS = (-1, 0, 1, 2, 7, 32, 255, 1024, 65_535, 1 << 24, (1 << 31) - 1, 1e-6, 1e6, float("nan"), float("inf"), -0.5)
_KINDS = (*range(42), 255, 1 << 31)
_ARRAYS = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")


@dataclass(frozen=True)
class Parts:
    """Content of a file: pairs of metadata, and named tensors."""

    metadata: list[Pair]
    tensors: list[Named]

    @classmethod
    def of_file(cls, file: Path) -> Parts:
        """Return the content of an intact file."""
        metadata, tensors = content_of(file)
        return cls(list(metadata.items()), list(tensors.items()))

    def data(self, **options: Any) -> bytes:
        """Return the file."""
        return gguf_file(self.metadata, self.tensors, **options)

    @property
    def header_bytes(self) -> int:
        """Bytes before the tensors."""
        return len(Parts(self.metadata, [(name, replace(tensor, data=b"")) for name, tensor in self.tensors]).data())


def mutate(random: Random, parts: Parts) -> tuple[str, bytes]:
    """Return the kind of a random change, and the changed file."""
    change = random.choice(_CHANGES)
    return change.__name__.strip("_"), change(random, parts)


def _flip_bits(random: Random, parts: Parts) -> bytes:
    data = bytearray(parts.data())
    size = random.choice((parts.header_bytes, parts.header_bytes, len(data)))
    for _ in range(random.choice((1, 1, 3, 20))):
        data[random.randrange(size)] ^= 1 << random.randrange(8)
    return bytes(data)


def _damage(random: Random, parts: Parts) -> bytes:
    data, size = parts.data(), parts.header_bytes
    if random.random() < 0.5:
        return mutations.mutate_bytes(random, data)
    return mutations.mutate_bytes(random, data[:size]) + data[size:]


def _cut(random: Random, parts: Parts) -> bytes:
    data = parts.data()
    return data[: random.randrange(random.choice((parts.header_bytes, len(data))))]


def _number_in_header(random: Random, parts: Parts) -> bytes:
    data = bytearray(parts.data())
    code = random.choice(("<Q", "<I"))
    value = random.choice((*_COUNTS, len(data)))
    at = random.choice((4, 8, 16, random.randrange(parts.header_bytes - 8)))
    struct.pack_into(code, data, at, value % (1 << 32) if code == "<I" else value)
    return bytes(data)


def _counts(random: Random, parts: Parts) -> bytes:
    right = [len(parts.tensors), len(parts.metadata)]
    right[random.randrange(2)] = random.choice((*_COUNTS, right[0] - 1, right[0] + 1, right[1] - 1, right[1] + 1))
    return parts.data(counts=(right[0], right[1]), version=random.choice((2, 3, 3, 3)))


def _tensor(random: Random, parts: Parts) -> bytes:
    """Change type, shape, offset or name of one tensor."""
    tensors = list(parts.tensors)
    at = random.randrange(len(tensors))
    name, tensor = tensors[at]
    change = random.randrange(6)
    if change == 0:
        tensor = replace(tensor, kind=random.choice(_KINDS))
    elif change == 1:
        shape = list(tensor.shape)
        shape[random.randrange(len(shape))] = random.choice((*_COUNTS, shape[0] * 2, shape[-1] + 32, shape[-1] // 2))
        tensor = replace(tensor, shape=random.choice((shape, shape[::-1], [*shape, 1], shape[:1], [], [1] * 100)))
    elif change == 2:
        offset = random.choice((0, 4, 32, 64, 1 << 20, 1 << 40, 1 << 63, (1 << 64) - 32, len(tensor.data)))
        tensor = replace(tensor, offset=offset)
    elif change == 3:
        name = random.choice((mutations.text(random).encode("utf-8", "replace"), b"\xff", b"x" * 64, tensors[0][0]))
    elif change == 4:
        name = random.choice(("rope_freqs.weight", "output.bias", "blk.99999.attn_q.weight", "model.norm.weight"))
    else:
        tensors.append(random.choice(tensors))
    tensors[at] = (name, tensor)
    if random.random() < 0.1:
        del tensors[at]
    random.shuffle(tensors)
    return Parts(parts.metadata, tensors).data()


def _pair(random: Random, parts: Parts) -> bytes:
    """Change the key, the type or the value of one pair of metadata."""
    pairs = list(parts.metadata)
    at = random.randrange(len(pairs))
    key, _ = pairs[at]
    kind = random.randrange(7)
    if kind == 0:
        pairs[at] = (random.choice((mutations.text(random).encode("utf-8", "replace"), b"\xff", "a\0b", "")), 1)
    elif kind == 1:
        pairs.append(random.choice(pairs))
    elif kind == 2:
        del pairs[at]
    elif kind == 3:
        pairs[at] = (key, random.choice((mutations.text(random).encode("utf-8", "replace"), b"\xc3", "qwen3")))
    elif kind == 4:
        pairs[at] = (key, random.choice(([1] * 3, ["x", "x"], ["x"] * 5000, [b"\xff"], [0.5] * 3, [True])))
    else:
        number = random.choice(_NUMBERS)
        pairs[at] = (key, number if isinstance(number, float) else Typed(random.choice((5, 11)), number))
    return Parts(pairs, parts.tensors).data()


def _array(random: Random, parts: Parts) -> bytes:
    """Change the vocabulary, the types of tokens or the merges."""
    pairs = dict(parts.metadata)
    key = random.choice(_ARRAYS)
    typed = pairs[key]
    items = list(typed.value if isinstance(typed, Typed) else typed)
    for _ in range(random.choice((1, 1, 5))):
        at = random.randrange(len(items))
        if isinstance(items[at], int):
            items[at] = random.choice((-1, 0, 1, 2, 3, 4, 5, 6, 1 << 30))
        else:
            other = random.choice(items)
            items[at] = random.choice((mutations.text(random).encode("utf-8", "replace"), b"\xff", "", other))
    if random.random() < 0.3:
        items = random.choice((items[:-1], items * 2, items[::-1], items[: len(items) // 2]))
    pairs[key] = Typed(5, items) if isinstance(typed, Typed) else items
    return Parts(list(pairs.items()), parts.tensors).data()


def _weights(random: Random, parts: Parts) -> bytes:
    """Write extreme values into the weights."""
    data = bytearray(parts.data())
    start = parts.header_bytes
    for _ in range(random.choice((1, 10))):
        at = random.randrange(start, len(data) - 2)
        struct.pack_into("<H", data, at, random.choice((0x7C00, 0xFC00, 0x7E00, 0x7BFF, 0x8000, 0x0001)))
    return bytes(data)


_CHANGES: tuple[Callable[[Random, Parts], bytes], ...] = (
    *(_flip_bits, _flip_bits, _damage, _damage, _cut, _number_in_header, _number_in_header, _counts),
    *(_tensor, _tensor, _tensor, _pair, _pair, _array, _weights),
)
