"""A scene: a program, the keys that are typed into it, and the picture of what it shows."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from docs.pictures.comparing import differences, lines
from docs.pictures.drawing import animated, data_of, frames_of, still
from docs.pictures.terminal import Terminal

FOLDER = Path(__file__).parent
SHELL = (sys.executable, "-m", "docs.pictures.shell")
CHAT = ("qwchat", "chat", "--no-save", "--temp", "0")
PROMPT = r"^\$ ?$"
HOME = Path("/tmp/qwchat")


@dataclass(frozen=True)
class Scene:
    """A scene.

    Attributes:
        name: of the picture, without its ending.
        title: what stands above the window.
        act: types the keys and marks the moments that are compared.
        words: the program and its arguments.
        rows, columns: size of the window.
        moving: draw all frames, not the last mark alone.
        replies: compare the text of replies, too; False where it depends on the moment of a key.
        prepare: makes what the program needs in its home.
    """

    name: str
    title: str
    act: Callable[[Terminal], None]
    words: tuple[str, ...] = CHAT
    rows: int = 30
    columns: int = 96
    moving: bool = False
    replies: bool = True
    prepare: Callable[[Path], None] = lambda home: None

    @property
    def picture(self) -> Path:
        """File of the picture."""
        return FOLDER / f"{self.name}.svg"

    def play(self, home: Path) -> Terminal:
        """Run the program from its start to the last key, and return what it showed."""
        self.prepare(home)
        with Terminal(self.words, home, rows=self.rows, columns=self.columns) as terminal:
            self.act(terminal)
        return terminal

    def draw(self, home: Path) -> str:
        """Return the picture of a run."""
        terminal = self.play(home)
        if self.moving:
            return animated(terminal.frames, terminal.marks, self.rows, self.columns, self.title)
        return still(terminal.frames[terminal.marks[-1]].rows, self.columns, self.title)

    def differences(self, home: Path) -> list[str]:
        """Run the program again, and return the lines in which it differs from the picture, as a diff."""
        data = data_of(self.picture.read_text(encoding="utf-8"))
        frames = frames_of(data)
        shown = [frames[mark].rows for mark in data["marks"]]
        terminal = self.play(home)
        marks = terminal.marks if self.moving else terminal.marks[-1:]
        run = [terminal.frames[mark].rows for mark in marks]
        return differences(lines(shown, HOME, replies=self.replies), lines(run, home, replies=self.replies))


@contextlib.contextmanager
def home(folder: Path = HOME) -> Iterator[Path]:
    """Make the home of the programs, with the embedded model converted, and remove it at the end.

    Its path is seen in pictures. Raises FileExistsError if there is such a folder.
    """
    folder.mkdir(mode=0o700)
    try:
        with Terminal(["qwchat", "-q", "-p", "hello"], folder, rows=24, columns=80) as terminal:
            terminal.end()
        yield folder
    finally:
        shutil.rmtree(folder)


def other_home() -> Path:
    """Return a path for a home of its own that is as long as the one in pictures."""
    return HOME.with_name("".join(secrets.choice(string.ascii_lowercase) for _ in HOME.name))
