"""The thought of the last reply above the prompt, which Ctrl-T shows and erases again."""

from __future__ import annotations

from prompt_toolkit.application import Application, run_in_terminal
from prompt_toolkit.output import Output

from qwchat.chat.editor.message_reader import ThoughtKeys
from qwchat.chat.view.tail import ERASE_BELOW


class UnfoldedThought:
    """The thought above the prompt, if it is shown there.

    Rows that have scrolled away cannot be erased; after a change of the window's width no rows are erased.

    Args:
        thoughts: Source of the thought.
    """

    def __init__(self, thoughts: ThoughtKeys) -> None:
        self._thoughts = thoughts
        self._rows = self._columns = 0

    def reset(self) -> None:
        """Start a new prompt, with other rows above it."""
        self._rows = 0

    def exists(self) -> bool:
        """Return whether there is a thought to show."""
        return bool(self._thoughts.last_rows(80))

    async def toggle(self, application: Application[str]) -> None:
        """Show the thought above the prompt, or erase it if it is there."""
        await run_in_terminal(lambda: self._draw(application.output))

    def _draw(self, output: Output) -> None:
        size = output.get_size()
        if self._rows and self._columns == size.columns:
            output.write_raw(f"\x1b[{min(self._rows, size.rows - 1)}A{ERASE_BELOW}")
            self._rows = 0
        else:
            rows = self._thoughts.last_rows(size.columns)
            output.write_raw("".join(f"{row}\r\n" for row in rows))
            self._rows, self._columns = len(rows), size.columns
        output.flush()
