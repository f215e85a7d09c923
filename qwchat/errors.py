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

    Args:
        tokens: length of the prompt in tokens.
        context: positions the context has.
        message: what to say of it instead of the usual.
    """

    def __init__(self, tokens: int, context: int, message: str | None = None) -> None:
        super().__init__(
            message
            or f"the prompt has {tokens:,} tokens and the context holds {context:,}, one of them for the answer: "
            "shorten the prompt, or ask for a longer context with --ctx"
        )
        self.tokens = tokens
        self.context = context


class NotEnoughMemoryError(QwchatError):
    """The machine cannot give the memory that the model, its cache or its work space needs."""


class NonFiniteLogitsError(QwchatError):
    """The model produced NaN or infinity, so there is no next token to choose."""


class SnapshotError(QwchatError):
    """A snapshot of the KV cache that cannot be used or written; the tokens are read again instead."""


class ConstraintError(QwchatError):
    """A reply that does not meet the constraint it was asked to meet, or a constraint that cannot be followed."""
