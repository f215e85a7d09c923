"""Tokenizer tables in a memory-mapped file, so that short prompts need not wait for the library's model.

The library takes a quarter of a second to build the model of a Qwen2 tokenizer, most of the start-up time. A prompt of
a few words needs a few hundred of its 300,000 entries. The library still normalises and splits the text. Only the
merging of byte-level characters within a piece is done here: merge the pair of the lowest rank, the leftmost first,
until no pair is left (Sennrich et al. 2016, arXiv 1508.07909).

The file is one line of JSON with the SHA-256 of the rest, padded to a multiple of 8 bytes, then the arrays in the order
of `_ARRAYS`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quant.safe_files import atomic_write

VERSION = 2  # version 1 did not check the pipeline
# Longest text, in characters, for which merging here is faster than building the library's model. Merging takes 1.8
# microseconds per character, and building as much per merge; a quarter of the merges leaves a wide margin.
LONGEST_TEXT = 4_000
_MERGES_PER_CHARACTER = 4
LONGEST_PIECE = 64
_ARRAYS = {"keys": np.uint64, "ranks": np.uint32, "merged": np.uint32, "offsets": np.uint32, "tokens": np.uint8}


class TokenizerTables:
    """Tables of one tokenizer.

    Args:
        metadata: the rest of the tokenizer definition.
        arrays: arrays of the file by name. `keys` (merges) u64: pairs of ids, the left one in the upper half, sorted.
            `ranks`, `merged` (merges) u32: rank of each pair and the id that replaces it. `offsets` (ids + 1) u32 into
            `tokens` u8: the tokens in UTF-8.

    Attributes:
        metadata: the rest of the tokenizer definition.
        longest_text: longest text, in characters, for which the tables are faster than the library.
    """

    def __init__(self, metadata: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.metadata = metadata
        self._keys = arrays["keys"]
        self._ranks, self._merged = arrays["ranks"], arrays["merged"]
        self._offsets, self._tokens = arrays["offsets"], arrays["tokens"]
        self.longest_text = max(LONGEST_TEXT, len(self._keys) // _MERGES_PER_CHARACTER)
        self._pair_cache: dict[int, tuple[int, int] | None] = {}
        self._characters: dict[str, int] = metadata["characters"]

    def token(self, token_id: int) -> str | None:
        """Return a token in the byte-level alphabet, or None for an unused id."""
        if not 0 <= token_id < len(self._offsets) - 1:
            return None
        start, stop = int(self._offsets[token_id]), int(self._offsets[token_id + 1])
        return self._tokens[start:stop].tobytes().decode() or None

    def all_tokens(self) -> tuple[str, NDArray[np.int64]]:
        """Return all tokens in the byte-level alphabet, joined, and their boundaries (ids + 1,) i64."""
        utf8 = np.asarray(self._tokens)
        characters = np.cumsum(np.append(0, (utf8 & 0xC0) != 0x80))
        return utf8.tobytes().decode(), characters[self._offsets]

    def _look_up_pair(self, left: int, right: int) -> tuple[int, int] | None:
        """Return rank and replacement id of a pair, or None if it is not merged."""
        key = left << 32 | right
        if key not in self._pair_cache:
            index = int(np.searchsorted(self._keys, np.uint64(key)))
            present = index < len(self._keys) and int(self._keys[index]) == key
            self._pair_cache[key] = (int(self._ranks[index]), int(self._merged[index])) if present else None
        return self._pair_cache[key]

    def merge(self, piece: str) -> list[int]:
        """Return the token ids of one piece in the byte-level alphabet."""
        ids = [self._characters[character] for character in piece]
        while True:
            pairs = [
                (rank_and_id[0], index, rank_and_id[1])
                for index in range(len(ids) - 1)
                if (rank_and_id := self._look_up_pair(ids[index], ids[index + 1])) is not None
            ]
            if not pairs:
                return ids
            _, index, merged = min(pairs)
            ids[index : index + 2] = [merged]


def _checksum(sizes: dict[str, int], metadata: dict[str, Any], payload: bytes | memoryview) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, sizes, metadata]).encode())
    digest.update(payload)
    return digest.hexdigest()


def read_tables(path: Path) -> TokenizerTables | None:
    """Return the tables in a file, or None if it is missing or damaged."""
    try:
        data = np.memmap(path, np.uint8, "r")
        line = data[: 1 << 20].tobytes().partition(b"\n")[0]
        header = json.loads(line)
        payload = data[len(line) + 1 :]
        if header["sha256"] != _checksum(header["sizes"], header["facts"], payload.data):
            return None
        arrays, position = {}, 0
        for name, kind in _ARRAYS.items():
            size = int(header["sizes"][name]) * np.dtype(kind).itemsize
            arrays[name] = payload[position : position + size].view(kind)
            position += size
        return TokenizerTables(header["facts"], arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_tables(
    path: Path, metadata: dict[str, Any], vocab: Mapping[str, int], merges: Sequence[tuple[str, str]]
) -> None:
    """Write the tables of a tokenizer. If the file cannot be written, do nothing.

    Args:
        path: file to write.
        metadata: the rest of the tokenizer definition.
        vocab: token in the byte-level alphabet -> id.
        merges: pairs of tokens in the order of their ranks.
    """
    left, right, merged = (
        np.fromiter((vocab[token] for token in column), np.uint64, len(merges))
        for column in ([a for a, _ in merges], [b for _, b in merges], [a + b for a, b in merges])
    )
    pairs = left << np.uint64(32) | right
    order = np.argsort(pairs, kind="stable")
    keys = pairs[order]
    last = np.append(keys[1:] != keys[:-1], True)[
        : len(keys)
    ]  # a pair that is listed twice has its last rank, as in the library
    order, keys = order[last], keys[last]
    names = [b""] * (max(vocab.values()) + 1)
    for token, token_id in vocab.items():
        names[token_id] = token.encode()
    arrays: dict[str, NDArray[Any]] = {
        "keys": keys,
        "ranks": order.astype(np.uint32),
        "merged": merged[order].astype(np.uint32),
        "offsets": np.cumsum([0, *map(len, names)]).astype(np.uint32),
        "tokens": np.frombuffer(b"".join(names), np.uint8),
    }
    payload = b"".join(arrays[name].tobytes() for name in _ARRAYS)
    sizes = {name: len(arrays[name]) for name in _ARRAYS}
    header = {"sha256": _checksum(sizes, metadata, payload), "sizes": sizes, "facts": metadata}
    line = json.dumps(header).encode()
    line += b" " * (-(len(line) + 1) % 8) + b"\n"
    with contextlib.suppress(OSError), atomic_write(path, durable=False) as file:
        file.write(line + payload)
