"""Tokenizer from cached tables: the same ids, and a rebuild if the tables are not valid."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qwchat.text import tokenizer_cache
from qwchat.text.tokenizer import Tokenizer
from tests.text.tiny import tokenizer_values, write_tokenizer

TEXT = "hello world, hello wo 漢字 'tis <|im_end|>"


@pytest.fixture
def cache(tmp_path: Path, tiny_folder: Path) -> Path:
    """Return a folder with the tables of the tiny tokenizer."""
    Tokenizer.from_folder(tiny_folder, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    return tmp_path


def uses_tables(tokenizer: Tokenizer) -> bool:
    """Return whether a tokenizer was loaded from tables and has not built the library's model yet."""
    return tokenizer._build_full is not None


def test_short_texts_need_no_model(cache: Path, tiny_folder: Path, tiny: Tokenizer) -> None:
    kept = Tokenizer.from_folder(tiny_folder, cache)
    assert kept.encode(TEXT) == tiny.encode(TEXT)
    assert kept.encode("") == []
    assert [kept.token_bytes(number) for number in range(kept.vocab_size)] == [
        tiny.token_bytes(number) for number in range(tiny.vocab_size)
    ]
    assert (kept.vocab_size, kept.special_ids) == (tiny.vocab_size, tiny.special_ids)
    assert uses_tables(kept)


def test_all_tokens_at_once(cache: Path, tiny_folder: Path, tiny: Tokenizer) -> None:
    kept = Tokenizer.from_folder(tiny_folder, cache)
    one_by_one = [tiny.token_bytes(number) for number in range(tiny.vocab_size)]
    assert kept.all_bytes() == tiny.all_bytes() == one_by_one
    assert uses_tables(kept)


def test_tokens_beyond_the_byte_alphabet(tmp_path: Path) -> None:
    values = tokenizer_values()
    values["model"]["vocab"]["漢 \x80"] = max(values["model"]["vocab"].values()) + 20
    (tmp_path / "odd").mkdir()
    folder = write_tokenizer(tmp_path / "odd", values)
    built, kept = (Tokenizer.from_folder(folder, tmp_path) for _ in range(2))
    assert uses_tables(kept)
    assert kept.all_bytes() == built.all_bytes()
    assert "漢 \x80".encode() in kept.all_bytes()
    assert kept.all_bytes().count(b"") >= 1


@pytest.mark.parametrize("text", ["hello " * tokenizer_cache.LONGEST_TEXT, "a" * (tokenizer_cache.LONGEST_PIECE + 1)])
def test_long_texts_and_pieces_go_to_the_library(cache: Path, tiny_folder: Path, tiny: Tokenizer, text: str) -> None:
    kept = Tokenizer.from_folder(tiny_folder, cache)
    assert kept.encode(text) == tiny.encode(text)
    assert not uses_tables(kept)
    assert kept.encode(TEXT) == tiny.encode(TEXT)


def test_a_large_vocabulary_is_worth_longer_texts() -> None:
    def tables(merges: int) -> tokenizer_cache.TokenizerTables:
        arrays = {name: np.zeros(merges, kind) for name, kind in tokenizer_cache._ARRAYS.items()}
        return tokenizer_cache.TokenizerTables({"characters": {}}, arrays)

    assert tables(4_000).longest_text == tokenizer_cache.LONGEST_TEXT
    assert tables(151_387).longest_text == 37_846


@pytest.mark.parametrize("place", [3, 200, -1])
def test_damaged_tables_are_made_again(cache: Path, tiny_folder: Path, tiny: Tokenizer, place: int) -> None:
    path = next(cache.iterdir())
    whole = bytearray(path.read_bytes())
    damaged = whole.copy()
    damaged[place] ^= 1
    path.write_bytes(damaged)
    tokenizer = Tokenizer.from_folder(tiny_folder, cache)
    assert not uses_tables(tokenizer)
    assert tokenizer.encode(TEXT) == tiny.encode(TEXT)


@pytest.mark.parametrize("length", [0, 5, 500, -1])
def test_truncated_tables_are_made_again(cache: Path, tiny_folder: Path, length: int) -> None:
    path = next(cache.iterdir())
    whole = path.read_bytes()
    path.write_bytes(whole[:length])
    assert not uses_tables(Tokenizer.from_folder(tiny_folder, cache))
    assert path.read_bytes() == whole


def test_another_file_has_other_tables(cache: Path, tmp_path: Path) -> None:
    values = tokenizer_values()
    values["model"]["merges"] = values["model"]["merges"][:-1]
    folder = tmp_path / "other"
    folder.mkdir()
    other = Tokenizer.from_folder(write_tokenizer(folder, values), cache)
    assert not uses_tables(other)
    assert len([path for path in cache.iterdir() if path.is_file()]) == 2


def test_a_pair_listed_twice_has_its_last_rank(tmp_path: Path) -> None:
    values = tokenizer_values()
    merges = values["model"]["merges"]
    merges.append(merges[0])
    folder = write_tokenizer(tmp_path, values)
    cache = tmp_path / "cache"
    cache.mkdir()
    built, kept = Tokenizer.from_folder(folder, cache), Tokenizer.from_folder(folder, cache)
    assert uses_tables(kept)
    assert kept.encode(TEXT) == built.encode(TEXT)


def test_a_tokenizer_that_ignores_merges_keeps_no_tables(tmp_path: Path) -> None:
    values = tokenizer_values()
    values["model"]["ignore_merges"] = True
    folder = write_tokenizer(tmp_path, values)
    cache = tmp_path / "cache"
    cache.mkdir()
    Tokenizer.from_folder(folder, cache)
    assert list(cache.iterdir()) == []


def test_a_missing_folder_is_not_an_error(tmp_path: Path, tiny_folder: Path, tiny: Tokenizer) -> None:
    assert Tokenizer.from_folder(tiny_folder, tmp_path / "gone").encode(TEXT) == tiny.encode(TEXT)


def test_tables_of_another_version_are_made_again(
    cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenizer_cache, "VERSION", tokenizer_cache.VERSION + 1)
    assert not uses_tables(Tokenizer.from_folder(tiny_folder, cache))
