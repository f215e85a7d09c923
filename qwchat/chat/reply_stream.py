"""Playing one reply: from the model's events to the screen, with Ctrl-C stopping it in between."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

from qwchat.chat.chat_model import Cancel
from qwchat.chat.display import PrefillProgress, ReplyDisplay
from qwchat.chat.interrupts import Interrupts
from qwchat.events import Done, Prefilled, TextEvent, TextStep

Reply = Generator[TextEvent, None, None]
StartReply = Callable[[Cancel], Reply]
"""Starts a reply, given the function that says whether it is to be cancelled."""


def show_reply(
    begin: StartReply,
    view: ReplyDisplay | None,
    status: PrefillProgress,
    on_event: Callable[[TextEvent], None] | None = None,
    interrupts: Interrupts | None = None,
    already_shown: str | None = None,
) -> Done:
    """Show one reply as it comes and return its end.

    Args:
        begin: starts the reply.
        view: where its text goes, or None where `on_event` is all that is wanted.
        status: where progress through a long prompt goes.
        on_event: is told every event as well.
        interrupts: what stops the reply; Ctrl-C alone where it is left out.
        already_shown: the beginning of the reply, where it is on the screen already.

    Whatever was shown has its line ended in every case. A request to stop ends the reply with finish_reason
    "cancelled"; Ctrl-C after one that was not heard raises KeyboardInterrupt.
    """
    shown, whole = False, None
    with interrupts or Interrupts() as interrupts:
        status.start()
        try:
            # Closing the generator tells the session and the engine that the reply is over.
            with closing(begin(partial(_check_stop, interrupts, status))) as reply:
                while True:
                    event = next(reply)
                    if on_event is not None:
                        on_event(event)
                    if isinstance(event, Prefilled):
                        status.update(event)
                        continue
                    status.clear()
                    if view is not None and already_shown is not None and isinstance(event, TextStep) and event.text:
                        view.resume(already_shown)
                        already_shown = None
                    if isinstance(event, Done):
                        shown, whole = shown or event.finish_reason != "cancelled", event.text
                        return event
                    shown = shown or bool(event.text)
                    if view is not None:
                        view.write(event.text)
        finally:
            status.clear()
            if view is not None and shown:
                view.end(whole)


def _check_stop(interrupts: Interrupts, status: PrefillProgress) -> bool:
    """Whether the reply is to stop; the engine asks within long passes too, so that a person gets an answer at once."""
    if not interrupts.stop_requested():
        return False
    status.stopping()
    return True
