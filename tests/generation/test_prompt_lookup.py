"""The n-gram index, compared with a search through the whole text."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwchat.generation.prompt_lookup import MAX_MATCH_TOKENS, PromptLookup

texts = st.one_of(
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.lists(st.integers(0, 7), min_size=1, max_size=120),
    st.lists(st.sampled_from([0, 1, 151_645, (1 << 21) - 1]), min_size=1, max_size=60),
)


def common(ids: list[int], source: int, end: int) -> int:
    """Count the tokens before `source` that equal those before `end`, up to MAX_MATCH_TOKENS."""
    length = 0
    while length < min(MAX_MATCH_TOKENS, source) and ids[source - 1 - length] == ids[end - 1 - length]:
        length += 1
    return length


def searched(ids: list[int], prompt: int) -> tuple[int, int]:
    """Return source and length of the match after `ids`, of which the first `prompt` were there from the start."""
    source = length = 0
    for end in range(prompt, len(ids) + 1):
        kept = length + 1 if length and end > prompt and ids[source] == ids[end - 1] else 0
        kept_source = source + 1
        found = [
            max(places)
            for size in (3, 2)
            if end >= size and (places := [p for p in range(size, end) if ids[p - size : p] == ids[end - size : end]])
        ]
        recent = common(ids, found[0], end) if found else 0
        if kept >= MAX_MATCH_TOKENS or kept > recent:
            source, length = kept_source, kept
        else:
            source, length = (found[0], recent) if found else (kept_source, 0)
    return source, length


@given(texts, st.data())
def test_the_index_finds_what_a_search_finds(ids: list[int], data: st.DataObject) -> None:
    prompt = data.draw(st.integers(1, len(ids)))
    lookup = PromptLookup(np.array(ids[:prompt]))
    for end in range(prompt, len(ids) + 1):
        if end > prompt:
            lookup.append(ids[end - 1])
        source, length = searched(ids[:end], prompt)
        assert lookup.length == length
        assert lookup.guess == (ids[source] if length else -1)
        if length:
            behind = ids[source:end]
            assert lookup.draft(7) == (behind * 7)[:7]


@pytest.mark.parametrize(
    ("ids", "draft"),
    [
        ([5], None),
        ([5, 5], None),
        ([5, 5, 5], [5, 5, 5, 5]),
        ([1, 2, 9, 1, 2], [9, 1, 2, 9]),
        # The triple 7 1 2 is preferred to the more recent pair 1 2, and a later triple to an earlier one.
        ([7, 1, 2, 3, 7, 1, 2, 4, 0, 1, 2, 5, 7, 1, 2], [4, 0, 1, 2]),
    ],
)
def test_drafts(ids: list[int], draft: list[int] | None) -> None:
    lookup = PromptLookup(np.array(ids))
    assert (lookup.draft(4) if lookup.length else None) == draft


def test_a_source_that_keeps_being_right_is_kept() -> None:
    song = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    chorus = [7, 8, 9, 50]
    lookup = PromptLookup(np.array([*song, 10, *chorus, *chorus]))
    for token in song:
        lookup.append(token)
    assert lookup.guess == 10
    assert lookup.length >= MAX_MATCH_TOKENS
