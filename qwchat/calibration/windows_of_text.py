"""Choose the tokens of a calibration from documents."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qwchat.errors import UsageError

Ids = NDArray[np.int64]

WINDOW = 1024
"""Most tokens that are evaluated together."""
LEAST_TOKENS = 64
DEFAULT_TOKENS = 16384
_GOLDEN = 0.6180339887498949


def choose_windows(documents: Sequence[Ids], tokens: int, window: int = WINDOW) -> list[Ids]:
    """Return pieces of documents, each evaluated from position 0, with `tokens` tokens together.

    Documents are divided into windows. If there are too many of them, those that remain are spread evenly over all
    documents, so that every kind of text has its share.

    Args:
        documents: token ids of each document.
        tokens: how many tokens to choose; fewer if the documents have fewer.
        window: most tokens of a piece.

    Raises:
        UsageError: the documents have fewer than LEAST_TOKENS tokens.
    """
    pieces = [ids[start : start + window] for ids in documents for start in range(0, len(ids), window)]
    found = sum(map(len, pieces))
    if found < LEAST_TOKENS:
        raise UsageError(f"the text has {found:,} tokens, too few to calibrate: give at least {LEAST_TOKENS}")
    if found <= tokens:
        return pieces
    # Sorted like this, the first n windows are spread evenly for every n.
    order = np.argsort(np.arange(len(pieces)) * _GOLDEN % 1.0, kind="stable")
    chosen: dict[int, Ids] = {}
    missing = tokens
    for place in order.tolist():
        if not missing:
            break
        piece = pieces[place][:missing]
        if len(piece):
            chosen[place] = piece
            missing -= len(piece)
    return [chosen[place] for place in sorted(chosen)]


def tokens_digest(pieces: Sequence[Ids]) -> str:
    """Return the SHA-256 (hex) of the token ids, and of where each piece ends."""
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(piece, "<i8").tobytes())
    return digest.hexdigest()
