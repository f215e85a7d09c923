"""What a command is, what it works on and what may come of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qwchat.chat.active_persona import ActivePersona
from qwchat.chat.attachments import Attachment
from qwchat.chat.chat_settings import ChatSettings
from qwchat.chat.display import KeyValues, ReplyDisplay, Table
from qwchat.chat.reply_stream import StartReply
from qwchat.chat.session import PendingReply, Session
from qwchat.chat.session_recorder import ChooseSession, SessionRecorder
from qwchat.chat.suggestions import Suggestion


@dataclass(frozen=True)
class Show:
    """Show `text` and stay in the chat.

    Attributes:
        text: the answer of the command.
        hint: advice below it, dimmed; empty for none.
        message: a message of the conversation below that; None for none.
        as_reply: the message is shown as replies are shown.
        table: a table or facts above the text; None for neither.
    """

    text: str = ""
    hint: str = ""
    message: str | None = None
    as_reply: bool = False
    table: Table | KeyValues | None = None


@dataclass(frozen=True)
class StreamReply:
    """Stream the reply that `begin` asks for; `hint` is shown before."""

    begin: Callable[[], PendingReply]
    hint: str | None = None


@dataclass(frozen=True)
class StreamSummary:
    """Stream the summary that `begin` starts, which stands for old turns; `hint` is shown before."""

    begin: StartReply
    hint: str


@dataclass(frozen=True)
class Draft:
    """The next prompt begins with `text`, to be changed and sent."""

    text: str


@dataclass(frozen=True)
class Quit:
    """Leave the chat."""


Outcome = Show | StreamReply | StreamSummary | Draft | Quit


@dataclass
class CommandContext:
    """What commands work on.

    Attributes:
        session: the conversation.
        model_name: the model's name for people.
        view: replies on the screen.
        written: files that were written so far.
        attached: files that go with the next message.
        recorder: the session that the conversation is kept in.
        choose: lets the person choose one of several sessions; None where nobody sits.
        settings: the settings; those of the session alone, until one that knows more takes its place.
        persona: the personas.
    """

    session: Session
    model_name: str
    view: ReplyDisplay
    written: set[Path] = field(default_factory=set)
    attached: list[Attachment] = field(default_factory=list)
    recorder: SessionRecorder = field(default_factory=SessionRecorder)
    choose: ChooseSession | None = None
    settings: ChatSettings = field(init=False)
    persona: ActivePersona = field(init=False)

    def __post_init__(self) -> None:
        self.settings = ChatSettings(self.session)
        self.persona = ActivePersona(self.session)


def _no_suggestions(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return ()


@dataclass(frozen=True)
class ChatCommand:
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
    run: Callable[[CommandContext, str], Outcome]
    details: str = ""
    complete: Callable[[CommandContext, str], Iterable[Suggestion]] = _no_suggestions
    aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """How it is typed: `/save FILE`."""
        return f"/{self.name} {self.argument}".rstrip()
