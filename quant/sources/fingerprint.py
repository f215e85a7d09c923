"""Digest of a sample of a file, to distinguish models without reading all their weights."""

from __future__ import annotations

import hashlib
from typing import BinaryIO


def sample_digest(stream: BinaryIO, size: int, pieces: int = 16, piece_bytes: int = 4096) -> bytes:
    """Return the SHA-256 of the size and of evenly spaced pieces of the file.

    It distinguishes two trainings of one architecture without reading the whole file.
    """
    digest = hashlib.sha256(size.to_bytes(8, "little"))
    for piece in range(pieces):
        stream.seek(piece * max(0, size - piece_bytes) // (pieces - 1))
        digest.update(stream.read(piece_bytes))
    return digest.digest()
