"""A tokenizer's tables in a file that is mapped: what a short prompt needs, without building the library's model.

The library takes a quarter of a second to build the model of a Qwen2 tokenizer, most of a start; a prompt of some
words needs a few hundred of its 300,000 entries.  Normalising and splitting stay with the library; only the merging
of byte-level characters within a piece is done here (Sennrich et al. 2016: the pair of the lowest rank, the leftmost
first, until there is none).

The file: one line of JSON, padded to a multiple of 8 bytes, with the SHA-256 of all the rest; then the arrays of
_ARRAYS.
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

VERSION = 2  # before it, the kept pipeline was not checked
# Characters up to which merging here is quicker than building the library's model: 1.8 microseconds each, and as many
# for a merge: 4,000 for any vocabulary, a quarter of the merges of a large one, to stay well below.
LONGEST_TEXT = 4_000
_MERGES_PER_CHARACTER = 4
LONGEST_PIECE = 64
_ARRAYS = {"keys": np.uint64, "ranks": np.uint32, "merged": np.uint32, "offsets": np.uint32, "tokens": np.uint8}


class TokenizerTables:
    """The tables of one tokenizer; `metadata` is what else was kept with them.

    `keys` (merges) u64: pairs of ids, the left one in the upper half, sorted; `ranks`, `merged` (merges) u32: the
    rank of each pair and the id it becomes; `offsets` (ids + 1) u32 into `tokens`, the tokens' UTF-8.
    """

    def __init__(self, metadata: dict[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        self.metadata = metadata
        self._keys = arrays["keys"]
        self._ranks, self._merged = arrays["ranks"], arrays["merged"]
        self._offsets, self._tokens = arrays["offsets"], arrays["tokens"]
        self.longest_text = max(LONGEST_TEXT, len(self._keys) // _MERGES_PER_CHARACTER)
        """Characters of a text for which the tables are worth using."""
        self._pair_cache: dict[int, tuple[int, int] | None] = {}
        self._characters: dict[str, int] = metadata["characters"]

    def token(self, token_id: int) -> str | None:
        """The token of an id, in the byte-level alphabet; None for a gap."""
        if not 0 <= token_id < len(self._offsets) - 1:
            return None
        start, stop = int(self._offsets[token_id]), int(self._offsets[token_id + 1])
        return self._tokens[start:stop].tobytes().decode() or None

    def all_tokens(self) -> tuple[str, NDArray[np.int64]]:
        """All tokens in the byte-level alphabet, joined, and where each begins and ends, (ids + 1,) i64."""
        utf8 = np.asarray(self._tokens)
        characters = np.cumsum(np.append(0, (utf8 & 0xC0) != 0x80))
        return utf8.tobytes().decode(), characters[self._offsets]

    def _look_up_pair(self, left: int, right: int) -> tuple[int, int] | None:
        """Rank and id of what a pair becomes, if it is merged at all."""
        key = left << 32 | right
        if key not in self._pair_cache:
            index = int(np.searchsorted(self._keys, np.uint64(key)))
            present = index < len(self._keys) and int(self._keys[index]) == key
            self._pair_cache[key] = (int(self._ranks[index]), int(self._merged[index])) if present else None
        return self._pair_cache[key]

    def merge(self, piece: str) -> list[int]:
        """The ids of one piece, written in the byte-level alphabet."""
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
    """The tables in `path`; None where there is no file, or it is not as it was written."""
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
    """Keeps the tables of a vocabulary; `merges` in the order of their ranks.  Where there is no room, nothing."""
    left, right, merged = (
        np.fromiter((vocab[token] for token in column), np.uint64, len(merges))
        for column in ([a for a, _ in merges], [b for _, b in merges], [a + b for a, b in merges])
    )
    pairs = left << np.uint64(32) | right
    order = np.argsort(pairs, kind="stable")
    keys = pairs[order]
    last = np.append(keys[1:] != keys[:-1], True)[: len(keys)]  # of a pair that is listed twice, as in the library
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
