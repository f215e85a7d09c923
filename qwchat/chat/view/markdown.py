"""Light styling of Markdown as it streams: append-only, nothing held back longer than a marker, no text changed.

Headings and ``**strong**`` become bold, code is coloured, fences are dim; every character of the source stays where it
is, so what a person copies is what the model wrote. Without the styles, the output is the input.
"""

from __future__ import annotations

from qwchat.chat.view.terminal import BOLD, CODE, DIM, EMPHASIS, Look

_LONGEST_INDENT = 24  # A deeper indented line is not looked at for fences.


class MarkdownStyler:
    """Turns a stream of Markdown into the same text with styles. Any cut of the input gives the same output."""

    def __init__(self, look: Look) -> None:
        self._look = look
        self._active: str | None = None  # The SGR code that is switched on.
        self._fence = ""  # The marker that opened the code block we are in.
        self._begin_line()

    def _begin_line(self) -> None:
        self._head: str | None = ""  # What the line has so far while its kind is open; None once it is known.
        self._line: str | None = None  # The style of the whole line, where it has one.
        self._ticks = 0  # Length of the backtick run that opened the code span we are in.
        self._strong = False
        self._held = ""  # A run of markers, or a backslash, whose meaning the next character decides.

    def push(self, text: str) -> str:
        """The styled form of as much of the text so far as is certain."""
        return "".join([self._character(character) for character in text])

    def flush(self) -> str:
        """What was held back, and every style switched off. The styler is as new afterwards."""
        rest = self._finish_line()
        self._fence = ""
        return rest

    # One character at a time.

    def _character(self, character: str) -> str:
        if character == "\n":
            return self._end_of_line()
        if self._head is None:
            return self._inside(character)
        self._head += character
        return self._settle_head() if self._kind_is_certain(self._head) else ""

    def _end_of_line(self) -> str:
        return self._finish_line() + "\n"

    def _finish_line(self) -> str:
        written = self._settle_head() + self._settle_run("\n") + self._switch(None)
        self._begin_line()
        return written

    def _kind_is_certain(self, head: str) -> bool:
        """Whether the beginning of a line says what the line is."""
        marker = head.lstrip(" ")
        if len(head) - len(marker) > _LONGEST_INDENT:
            return True
        if self._fence:
            # Only a line of nothing but the marker closes a block: wait for its end.
            return bool(marker.strip(self._fence[0] + " "))
        if marker.startswith(("```", "~~~")):
            return False  # A fence, unless the line turns out to hold a second run of backticks.
        if marker[:1] in ("`", "~", "#"):
            return len(marker) > 6 or marker != marker[0] * len(marker)
        return bool(marker)

    def _settle_head(self) -> str:
        """Write the held beginning of a line in the style of the line's kind."""
        head, self._head = self._head, None
        if head is None:
            return ""
        marker = head.strip(" ")
        if self._fence:
            closes = len(marker) >= len(self._fence) and not marker.strip(self._fence[0])
            self._line = DIM if closes else CODE
            self._fence = "" if closes else self._fence
        elif marker.startswith(("```", "~~~")):
            information = marker.lstrip(marker[0])
            if marker[0] not in information:
                self._line, self._fence = DIM, marker[: len(marker) - len(information)]
        elif marker.startswith("#") and head.lstrip(" ").lstrip("#").startswith(" "):
            self._line = BOLD
        return "".join([self._inside(character) for character in head])

    # Inline marks: code spans and strong text, which end with their line at the latest.

    def _inside(self, character: str) -> str:
        if self._line in (DIM, CODE):
            return self._switch(self._line) + character
        if self._held and (self._held == "\\" or character != self._held[0]):
            if self._held == "\\":
                held, self._held = self._held, ""
                return self._plain(held + character)
            return self._settle_run(character) + self._inside(character)
        if character in "`*" or (character == "\\" and not self._ticks):
            self._held += character
            return ""
        return self._plain(character)

    def _settle_run(self, following: str) -> str:
        """Write a held run of markers, now that the character after it is known."""
        run, self._held = self._held, ""
        if not run or run == "\\":
            return self._plain(run)
        if run[0] == "`":
            return self._settle_ticks(run)
        if self._ticks or len(run) < 2:
            return self._plain(run)
        if self._strong:
            written = self._plain(run)
            self._strong = False
            return written
        self._strong = not following.isspace()
        return self._plain(run)

    def _settle_ticks(self, run: str) -> str:
        if not self._ticks:
            self._ticks = len(run)
            return self._plain(run)
        written = self._plain(run)
        if len(run) == self._ticks:
            self._ticks = 0
        return written

    def _plain(self, text: str) -> str:
        if not text:
            return ""
        if self._ticks:
            return self._switch(CODE) + text
        return self._switch(BOLD if self._strong or self._line == BOLD else None) + text

    def _switch(self, code: str | None) -> str:
        """The escape sequence from the active style to ``code``; empty where the look allows neither."""
        if code is not None and not (self._look.emphasis if code in EMPHASIS else self._look.colour):
            code = None
        if code == self._active:
            return ""
        written = "\x1b[0m" if self._active is not None else ""
        self._active = code
        return written + (f"\x1b[{code}m" if code is not None else "")
