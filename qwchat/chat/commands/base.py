"""What a command is, what it works on and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qwchat.chat.attachments import Attachment
from qwchat.chat.display import Facts, ReplyDisplay, Table
from qwchat.chat.panel import Panel
from qwchat.chat.saved import Choose, Saved
from qwchat.chat.session import PendingReply, Session
from qwchat.chat.suggestions import Suggestion
from qwchat.chat.turn import Begin
from qwchat.chat.wardrobe import Wardrobe


@dataclass(frozen=True)
class Show:
    """Show `text` and stay in the chat.

    Attributes:
        text: the answer of the command.
        hint: advice below it, dimmed; empty for none.
        said: a message of the conversation below that; None for none.
        reply: the message is shown as replies are shown.
        above: a table or facts above the text; None for neither.
    """

    text: str = ""
    hint: str = ""
    said: str | None = None
    reply: bool = False
    above: Table | Facts | None = None


@dataclass(frozen=True)
class Play:
    """Stream the reply that `begin` asks for; `hint` is shown before."""

    begin: Callable[[], PendingReply]
    hint: str | None = None


@dataclass(frozen=True)
class Summarise:
    """Stream the summary that `begin` starts, which stands for old turns; `hint` is shown before."""

    begin: Begin
    hint: str


@dataclass(frozen=True)
class Draft:
    """The next prompt begins with `text`, to be changed and sent."""

    text: str


@dataclass(frozen=True)
class Quit:
    """Leave the chat."""


Outcome = Show | Play | Summarise | Draft | Quit


@dataclass
class Desk:
    """What commands work on.

    Attributes:
        session: the conversation.
        model_name: the model's name for people.
        view: replies on the screen.
        written: files that were written so far.
        attached: files that go with the next message.
        saved: the session that the conversation is kept in.
        choose: lets the person choose one of several sessions; None where nobody sits.
        panel: the settings; those of the session alone, until one that knows more takes its place.
        wardrobe: the personas.
    """

    session: Session
    model_name: str
    view: ReplyDisplay
    written: set[Path] = field(default_factory=set)
    attached: list[Attachment] = field(default_factory=list)
    saved: Saved = field(default_factory=Saved)
    choose: Choose | None = None
    panel: Panel = field(init=False)
    wardrobe: Wardrobe = field(init=False)

    def __post_init__(self) -> None:
        self.panel = Panel(self.session)
        self.wardrobe = Wardrobe(self.session)


def _nothing(desk: Desk, typed: str) -> Iterable[Suggestion]:
    return ()


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: what is typed behind the slash.
        argument: its argument as shown in the help; empty for none.
        summary: half a line for the list of commands.
        run: does it. Raises QwchatError.
        details: more lines for `/help NAME`.
        complete: what may follow, given what was typed of the argument.
        aliases: other names that work, and are not listed.
    """

    name: str
    argument: str
    summary: str
    run: Callable[[Desk, str], Outcome]
    details: str = ""
    complete: Callable[[Desk, str], Iterable[Suggestion]] = _nothing
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """How it is typed: `/save FILE`."""
        return f"/{self.name} {self.argument}".rstrip()
