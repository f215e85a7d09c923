"""Folding of big pastes: the user sees `[Pasted text #1 +40 lines]`, the model gets the text."""

from __future__ import annotations

import re
from collections.abc import Iterable

from qwchat.chat import mentions
from qwchat.chat.editor import message_syntax

MIN_FOLDED_CHARACTERS = 1000
MIN_FOLDED_LINES = 15

Span = tuple[int, int]
"""Position of a paste in a text: start and end, in characters."""

_CURSOR_REPORT = re.compile(r"\x1b\[\d+;\d+R")
_LABEL = re.compile(r"\[Pasted text #\d+ \+[\d,]+ (?:lines|characters)\]")


def normalise_paste(data: str) -> str:
    """Return pasted `data` with newlines instead of the carriage returns that terminals send.

    Cursor position reports, which a terminal may insert into a paste, are removed.
    """
    return _CURSOR_REPORT.sub("", data).replace("\r\n", "\n").replace("\r", "\n")


class PasteFolds:
    """The pastes of a chat and the labels that stand for them.

    A label changed by editing is ordinary text.
    """

    def __init__(self) -> None:
        self._contents: dict[str, str] = {}
        self._labels: dict[str, str] = {}

    def insertion_for(self, pasted: str, before: str) -> str:
        """Return the text to insert for a paste.

        A paste that begins a message is text: its slash does not begin a command, nor its quotes a block.

        Args:
            pasted: The paste.
            before: The text before the cursor.
        """
        is_big = len(pasted) >= MIN_FOLDED_CHARACTERS or _line_count(pasted) >= MIN_FOLDED_LINES
        if is_big or (not before and pasted.startswith(message_syntax.QUOTES)):
            return self.label_for(pasted)
        return pasted if before.strip() else message_syntax.escape_message(pasted)

    def label_for(self, content: str) -> str:
        """Return the label that stands for `content` in this chat."""
        if content not in self._labels:
            lines = _line_count(content)
            size = f"{lines:,} lines" if lines > 1 else f"{len(content):,} characters"
            label = f"[Pasted text #{len(self._labels) + 1} +{size}]"
            self._labels[content], self._contents[label] = label, content
        return self._labels[content]

    def expand(self, text: str) -> tuple[str, list[Span]]:
        """Return `text` with labels replaced by their contents, and the positions of those contents."""
        parts: list[str] = []
        spans: list[Span] = []
        length = end = 0
        for match in _LABEL.finditer(text):
            content = self._contents.get(match[0])
            if content is None:
                continue
            parts += [text[end : match.start()], content]
            length += match.start() - end + len(content)
            spans.append((length - len(content), length))
            end = match.end()
        return "".join([*parts, text[end:]]), spans

    def fold(self, text: str, spans: Iterable[Span]) -> str:
        """Return `text` with the given spans replaced by labels. Reverses `expand`, also for another chat."""
        parts: list[str] = []
        end = 0
        for start, stop in spans:
            parts += [text[end:start], self.label_for(text[start:stop])]
            end = stop
        return "".join([*parts, text[end:]])

    def to_message(self, text: str) -> str:
        """Return the message to send for the input `text`. In a message, `@` in a paste does not attach files."""
        block = message_syntax.block_content(text)
        if block is None and message_syntax.looks_like_command(text):
            return self.expand(text)[0]
        message = _LABEL.sub(
            lambda match: mentions.escape_mentions(self._contents.get(match[0], match[0])),
            text if block is None else block,
        )
        return message_syntax.escape_message(message) if block is not None or self._starts_with_label(text) else message

    def restore_labels(self, text: str, before: str) -> str:
        """Return `text` with unchanged pastes folded again, after an external editor got `before` expanded."""
        literal = self._starts_with_label(before)
        known = {match[0]: self._contents[match[0]] for match in _LABEL.finditer(before) if match[0] in self._contents}
        for label, content in sorted(known.items(), key=lambda pair: -len(pair[1])):
            text = text.replace(content, label)
        return message_syntax.escape_message(text) if literal and not self._starts_with_label(text) else text

    def label_at_end(self, text: str) -> str | None:
        """Return the label at the end of `text`, which Backspace deletes as a whole, or None."""
        start = text.rfind("[")
        return text[start:] if start >= 0 and text[start:] in self._contents else None

    def _starts_with_label(self, text: str) -> bool:
        match = _LABEL.match(text.lstrip())
        return match is not None and match[0] in self._contents


def _line_count(text: str) -> int:
    return text.removesuffix("\n").count("\n") + 1
