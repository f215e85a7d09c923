"""Published templates of the model family, known by their hash.

They are rendered in this process. All other templates are rendered in a worker (`qwchat.text.template.isolated`).
"""

from __future__ import annotations

import hashlib

DIGESTS = frozenset(
    {
        "66edfb854931c933d3ac94f507626dd4fa2d5ca0a9b1036b11729d296a7392ac",  # ChatML without a system message
        "793202280c0910ab26bc6eb57c8212c2417324c6d8c4efd0d10d59092ab3e3eb",  # Qwen2 Instruct, mini
        "af9c0233881b083b52ff773580215222b5440ac3d0beeeca99b76329b048f8db",  # Qwen1.5, Qwen2 base models
        "55b2f4a26ac9ee719330a61a0c39d9e538b0e9322212f048326318cff4f8674a",  # Qwen2.5 Instruct, Qwen2.5-Coder Instruct
    }
)
"""SHA-256 of each template in the form of `_normalised`. Read a template before you add it."""


def is_published(source: str) -> bool:
    """Return whether `source` is a published template. Line ends and surrounding blank lines are ignored."""
    return hashlib.sha256(_normalised(source)).hexdigest() in DIGESTS


def _normalised(source: str) -> bytes:
    return source.replace("\r\n", "\n").strip("\n").encode("utf-8", "surrogatepass")
