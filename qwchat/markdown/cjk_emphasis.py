"""Markers of emphasis beside CJK text, which has no blanks between its words.

CommonMark decides by blanks and punctuation whether `**` may begin or end something strong.  In `**注意：**这是`
there is punctuation before the second marker and a letter behind it, so it ends nothing there, and models that write
Chinese write this all the time.  Here a CJK character on one side of a marker lets it do whatever blanks do not forbid,
in the spirit of https://github.com/tats-u/markdown-cjk-friendly.
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
    def scanDelims(self, start: int, canSplitWord: bool) -> Scanned:
        """What the markers at `start` may do. `canSplitWord`: they may also do it within a word (not `_`)."""
        found = super().scanDelims(start, canSplitWord)
        before, after = self.src[:start][-1:] or " ", self.src[start + found.length :][:1] or " "
        if not canSplitWord or not (is_wide(before) or is_wide(after)):
            return found
        return Scanned(found.can_open or not after.isspace(), found.can_close or not before.isspace(), found.length)


class CJKInlineParser(ParserInline):
    """markdown-it's parser of what is within a line, on these terms."""

    def parse(self, src: str, md: MarkdownIt, env: EnvType, tokens: list[Token]) -> list[Token]:
        """The tokens of `src`, behind `tokens`."""
        state = _CJKInlineState(src, md, env, tokens)
        self.tokenize(state)
        for rule in self.ruler2.getRules(""):
            rule(state)
        return state.tokens
