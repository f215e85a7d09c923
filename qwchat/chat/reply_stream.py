"""Showing one reply: passes the model's events to the screen, and stops on Ctrl-C."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial

from qwchat.chat.chat_model import Cancel
from qwchat.chat.display import PrefillProgress, ReplyDisplay, ThoughtDisplay
from qwchat.chat.interrupts import Interrupts
from qwchat.events import Done, Prefilled, TextEvent, TextStep

Reply = Generator[TextEvent, None, None]
StartReply = Callable[[Cancel], Reply]
"""Starts a reply, given the function that tells whether to stop it."""


def show_reply(
    begin: StartReply,
    view: ReplyDisplay | None,
    status: PrefillProgress,
    on_event: Callable[[TextEvent], None] | None = None,
    interrupts: Interrupts | None = None,
    already_shown: str | None = None,
    thoughts: ThoughtDisplay | None = None,
) -> Done:
    """Show one reply as it is generated.

    Args:
        begin: starts the reply.
        view: where its text is shown; None if only `on_event` is needed.
        status: shows the progress of the prefill.
        on_event: called with every event.
        interrupts: what stops the reply; only Ctrl-C if not given.
        already_shown: the beginning of the reply, if it is already on the screen.
        thoughts: where its thought is shown; None if it is not shown.

    Returns:
        The end of the reply. A request to stop gives it finish_reason "cancelled".

    Raises:
        KeyboardInterrupt: a second Ctrl-C, before the first one took effect.

    The line on the screen is ended in every case.
    """
    shown, whole = False, None
    with interrupts or Interrupts() as interrupts:
        status.start()
        try:
            # Closing the generator makes the session and the engine finish the reply.
            with closing(begin(partial(_check_stop, interrupts, status))) as reply:
                while True:
                    event = next(reply)
                    if on_event is not None:
                        on_event(event)
                    if isinstance(event, Prefilled):
                        status.update(event)
                        continue
                    status.clear()
                    if isinstance(event, TextStep) and event.reasoning:
                        if thoughts is not None:
                            thoughts.write(event.text, event.tokens)
                        continue
                    if thoughts is not None and (isinstance(event, Done) or event.text):
                        thoughts.end(stopped=isinstance(event, Done) and event.finish_reason == "cancelled")
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
            if thoughts is not None:
                thoughts.end(stopped=True)
            if view is not None and shown:
                view.end(whole)


def _check_stop(interrupts: Interrupts, status: PrefillProgress) -> bool:
    """Return whether to stop the reply, and show it at once: the engine asks within long forward passes as well."""
    if not interrupts.stop_requested():
        return False
    status.stopping()
    return True
