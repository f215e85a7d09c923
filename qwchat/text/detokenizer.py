"""Token ids to text as they arrive."""

from __future__ import annotations

import codecs

from qwchat.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decodes a reply token by token.

    Tokens may end within a character (one zero-width joiner is two tokens of Qwen2). Such bytes are held back until the
    rest arrives or cannot arrive any more, so that all pieces joined equal `Tokenizer.decode` of all ids.

    Args:
        tokenizer: the one that the ids belong to.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The longest text that is certain after this token, "" while a character is incomplete.

        Raises:
            UsageError: the id is none of the tokenizer's.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What is still held back, as U+FFFD; the decoder is then as new."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
