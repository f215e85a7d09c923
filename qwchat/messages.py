"""The one form in which a conversation travels through qwchat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NotRequired, TypedDict


class Message(TypedDict):
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        content: the text of the turn.
        token_ids: for an assistant's turn, the ids that the model produced. Where they are given they stand in the
            prompt in place of the re-encoded content, because text can be encoded in other ways than the model wrote
            it and the KV cache can be re-used only as far as the ids agree.
    """

    role: str
    content: str
    token_ids: NotRequired[Sequence[int]]
