"""Say what to do about a prompt that does not fit, in the words of the place where a person reads it."""

from __future__ import annotations

from qwchat.chat.context import ContextFullError, SummaryTooLongError
from qwchat.errors import PromptTooLongError


def explained(error: Exception, *, chat: bool) -> str:
    """Return the message of `error`; a prompt that does not fit comes with the remedies of the chat or of the flags."""
    if not isinstance(error, PromptTooLongError):
        return str(error)
    remedies = [_shorter(error, chat=chat)]
    if error.fits_longer:
        setting = "/set ctx N" if chat else "--ctx N"
        remedies.append(f"{setting} allows a longer context (up to {error.longest:,} tokens with this model)")
    elif error.context >= error.longest:
        remedies[-1] += f" ({error.longest:,} tokens are the maximum of this model)"
    return f"{error.facts}: {', or '.join(remedies)}"


def _shorter(error: PromptTooLongError, *, chat: bool) -> str:
    """Return how the prompt gets shorter."""
    if isinstance(error, SummaryTooLongError):
        return "/drop leaves them out" if chat else "--overflow drop leaves them out"
    if isinstance(error, ContextFullError):
        return "/drop or /summarise makes room" if chat else "--overflow drop or summarise makes room"
    return "shorten the message" if chat else "shorten the prompt"
