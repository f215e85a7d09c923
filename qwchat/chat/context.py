"""What fills the context: what a message brings along, and how full it is."""

from __future__ import annotations

from collections.abc import Sequence

from qwchat.chat.attachments import Attachment, listing, total
from qwchat.chat.session import Session
from qwchat.chat.view.screen import Screen


def announce(screen: Screen, session: Session, attached: Sequence[Attachment], question: str) -> None:
    """Say what goes along with ``question``, in which it stands, and how full the context is then.

    Raises TemplateError, UsageError.
    """
    if not attached:
        return
    model = session.model
    counted = [(attachment, len(model.encode(attachment.block()))) for attachment in attached]
    tokens = model.count([*session.messages, {"role": "user", "content": question}])
    for line in listing(counted):
        screen.notice(line)
    screen.notice(f"{total(counted)}; context {tokens:,}/{model.context:,} after this")
