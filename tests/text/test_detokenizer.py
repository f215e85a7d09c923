"""Streaming decoding equals one-shot decoding."""

from __future__ import annotations

import random

import pytest

from qwchat.errors import UsageError
from qwchat.text.detokenizer import StreamDecoder
from qwchat.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import PHRASES, composed


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.flush()]


@pytest.mark.parametrize("text", PHRASES)
def test_pieces_join_to_the_text_and_never_show_half_a_character(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    assert "".join(pieces) == composed(text)
    assert "".join(pieces).count("\ufffd") == text.count("\ufffd")


def test_one_byte_per_token_shows_each_character_when_it_is_whole(tiny: Tokenizer) -> None:
    bytes_of_family = list("👨‍👩".encode())
    by_byte = {tiny.token_bytes(token_id): token_id for token_id in range(256)}
    pieces = stream(tiny, [by_byte[bytes([value])] for value in bytes_of_family])
    assert pieces == ["", "", "", "👨", "", "", "\u200d", "", "", "", "👩", ""]


def test_any_ids_stream_like_one_shot_decoding(tokenizer: Tokenizer) -> None:
    dice = random.Random(7)
    for _ in range(300):
        pool = range(256) if dice.random() < 0.5 else range(tokenizer.vocab_size)
        ids = dice.choices(pool, k=dice.randrange(1, 60))
        pieces = stream(tokenizer, ids)
        assert "".join(pieces) == tokenizer.decode(ids)


def test_a_flushed_decoder_starts_again(tiny: Tokenizer) -> None:
    decoder = StreamDecoder(tiny)
    decoder.push(tiny.encode("漢")[0])
    assert decoder.flush() == "\ufffd"
    assert "".join(map(decoder.push, tiny.encode("漢"))) == "漢"
    assert decoder.flush() == ""


def test_ids_of_padding_rows_are_refused(qwen2: Tokenizer) -> None:
    with pytest.raises(UsageError, match="outside this model's vocabulary"):
        StreamDecoder(qwen2).push(151_646)
