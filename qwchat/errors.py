"""Expected failures of qwchat.

Each message says what happened, where, and what to do next, on one line that a person can read without a traceback.
Exit codes are mapped from these classes in `qwchat.cli.exit_codes` only.
"""

from __future__ import annotations


class QwchatError(Exception):
    """Base class of every failure that qwchat expects and explains."""


class UsageError(QwchatError):
    """A request that cannot be carried out as given: an option out of range, text that is no Unicode."""


class ModelError(QwchatError):
    """A model that is missing, incomplete or corrupt."""


class TemplateError(ModelError):
    """A chat template that is broken, asks for what it may not have, or runs past its limits."""


class SessionError(QwchatError):
    """A saved conversation that is missing, damaged, or in use elsewhere."""


class SessionInUseError(SessionError):
    """A saved conversation that another process has open."""


class PromptTooLongError(QwchatError):
    """A prompt that does not fit in the context.

    The command line and the chat name their own ways to a longer context (`qwchat.chat.advice`).

    Args:
        tokens: length of the prompt in tokens.
        context: positions the context has.
        longest: the longest context that the model was made for.
        facts: what to say instead of the usual, without a remedy.
        remedy: what to do instead of the usual.
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        longest: int,
        facts: str | None = None,
        remedy: str = "shorten the prompt",
    ) -> None:
        self.facts = facts or (
            f"the prompt has {tokens:,} tokens and the context holds {context:,}, one of them for the answer"
        )
        self.tokens, self.context, self.longest, self.remedy = tokens, context, longest, remedy
        longer = f", or use a longer context (up to {longest:,} tokens)" if self.fits_longer else ""
        super().__init__(f"{self.facts}: {remedy}{longer}")

    @property
    def fits_longer(self) -> bool:
        """Whether the model can have a context in which the prompt fits."""
        return max(self.tokens, self.context) < self.longest


class NotEnoughMemoryError(QwchatError):
    """The machine cannot give the memory that the model, its cache or its work space needs."""


class NonFiniteLogitsError(QwchatError):
    """The model produced NaN or infinity, so there is no next token to choose."""


class SnapshotError(QwchatError):
    """A snapshot of the KV cache that cannot be used or written; the tokens are read again instead."""


class ConstraintError(QwchatError):
    """A reply that does not meet the constraint it was asked to meet, or a constraint that cannot be followed."""
