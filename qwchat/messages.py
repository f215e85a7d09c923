"""The representation of a conversation in qwchat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Message(TypedDict):
    """One message of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text.
        token_ids: for a reply, the ids that the model generated. The prompt contains them instead of the encoded
            content, because the tokenizer may encode the text differently and the KV cache is reused only up to the
            first different id.
    """

    role: str
    content: str
    token_ids: NotRequired[Sequence[int]]
