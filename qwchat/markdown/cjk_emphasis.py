"""Emphasis markers next to CJK text, which has no spaces between words.

CommonMark uses spaces and punctuation to decide whether `**` may open or close strong text. Models often write Chinese
such as `**注意：**这是`. There the second marker follows punctuation and precedes a letter, so CommonMark lets it close
nothing. Here, a CJK character on either side of a marker lets it do anything that spaces do not forbid, in the spirit
of https://github.com/tats-u/markdown-cjk-friendly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from markdown_it.parser_inline import ParserInline
from markdown_it.rules_inline import StateInline
from markdown_it.rules_inline.state_inline import Scanned

from qwchat.markdown.styled_text import is_wide

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token
    from markdown_it.utils import EnvType


class _CJKInlineState(StateInline):
    """Inline state of markdown-it with these rules for markers."""

    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """Return what the markers at `start` may do.

        Args:
            start: Position of the first marker.
            canSplitWord: Whether the marker may also be used within a word, unlike `_`.
        """
        found = super().scanDelims(start, canSplitWord)
        before, after = self.src[:start][-1:] or " ", self.src[start + found.length :][:1] or " "
        if not canSplitWord or not (is_wide(before) or is_wide(after)):
            return found
        return Scanned(found.can_open or not after.isspace(), found.can_close or not before.isspace(), found.length)


class CJKInlineParser(ParserInline):
    """Inline parser of markdown-it with these rules for markers."""

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        """Append the tokens of `src` to `tokens` and return them."""
        state = _CJKInlineState(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens
