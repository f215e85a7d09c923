"""Convert token ids to text as they arrive."""

from __future__ import annotations

import codecs

from qwchat.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decoder of a reply, token by token.

    A token may end within a character: a zero-width joiner is two tokens of Qwen2. Such bytes are held back until the
    rest arrives or the reply ends, so that the joined pieces equal `Tokenizer.decode` of all ids.

    Args:
        tokenizer: tokenizer of the ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """Add a token and return the text that is now complete; "" within a character.

        Raises:
            UsageError: the id is not in the vocabulary.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """Return the bytes that are still held back as U+FFFD, and reset the decoder."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
