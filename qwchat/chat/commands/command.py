"""Slash commands, the context in which they run, and their outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from qwchat.chat.active_persona import ActivePersona
from qwchat.chat.attachments import Attachment
from qwchat.chat.chat_models import ChatModels
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
        text: the response of the command.
        hint: advice below it, dimmed; empty for none.
        message: a message of the conversation to show below; None for none.
        as_reply: show the message as replies are shown.
        table: a table or facts above the text; None for neither.
    """

    text: str = ""
    hint: str = ""
    message: str | None = None
    as_reply: bool = False
    table: Table | KeyValues | None = None


@dataclass(frozen=True)
class StreamReply:
    """Stream the reply that `begin` returns, after showing `hint`."""

    begin: Callable[[], PendingReply]
    hint: str | None = None


@dataclass(frozen=True)
class StreamSummary:
    """Stream the summary that `begin` starts, after showing `hint`."""

    begin: StartReply
    hint: str


@dataclass(frozen=True)
class Draft:
    """Start the next prompt with `text`, for the user to edit and send."""

    text: str


@dataclass(frozen=True)
class Quit:
    """Leave the chat."""


Outcome = Show | StreamReply | StreamSummary | Draft | Quit


@dataclass
class CommandContext:
    """What commands can read and change.

    Attributes:
        session: the conversation.
        model_name: display name of the model.
        view: shows replies.
        written: files that this chat has written, which it may overwrite.
        attached: files to send with the next message.
        recorder: records the conversation in a saved session.
        choose: asks the user to choose a session; None if no user can be asked.
        settings: the settings of the chat; only reply settings until they are replaced.
        persona: the active persona.
        models: the models that the chat can switch to; None until they are set.
    """

    session: Session
    model_name: str
    view: ReplyDisplay
    written: set[Path] = field(default_factory=set)
    attached: list[Attachment] = field(default_factory=list)
    recorder: SessionRecorder = field(default_factory=SessionRecorder)
    choose: ChooseSession | None = None
    models: ChatModels | None = None
    settings: ChatSettings = field(init=False)
    persona: ActivePersona = field(init=False)

    def __post_init__(self) -> None:
        self.settings = ChatSettings(self.session)
        self.persona = ActivePersona(self.session)


def _no_suggestions(context: CommandContext, typed: str) -> Iterable[Suggestion]:
    return ()


@dataclass(frozen=True)
class ChatCommand:
    """One slash command.

    Attributes:
        name: the word after the slash.
        argument: its argument as shown in the help; empty for none.
        summary: half a line for the list of commands.
        run: runs it. Raises QwchatError.
        details: more lines for `/help NAME`.
        complete: returns completions for the argument typed so far.
        aliases: other names that work but are not listed.
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
        """The command with its argument: `/save FILE`."""
        return f"/{self.name} {self.argument}".rstrip()
