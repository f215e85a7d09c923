"""Expected failures of qwchat.

Each message says what happened, where, and what to do next, on one line that a person can read without a traceback.
Messages name no flag: they mention arguments (`quant.wording`). Exit codes are mapped from these classes in
`qwchat.cli.exit_codes` only.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quant.wording import ArgumentMessage, SuggestedArgument

_MAX_NAMED = 3


class QwchatError(Exception):
    """Base class of every failure that qwchat expects and explains."""


class UsageError(QwchatError):
    """A request that cannot be carried out as given: an option out of range, text that is no Unicode."""


class ModelError(QwchatError):
    """A model that is missing, incomplete or corrupt."""


class DamagedModelError(ModelError):
    """A model whose files differ from the checksums in its manifest.

    Args:
        path: the model folder.
        damaged: tensor or file, as it is to be named -> what is wrong with it; at least one.
        remedy: what to do.
    """

    def __init__(self, path: Path, damaged: Mapping[str, str], remedy: str = "convert the model again") -> None:
        names = list(damaged)
        if len(names) == 1:
            problem = f"{names[0]} is damaged ({damaged[names[0]]})"
        else:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            problem = f"{len(names)} tensors or files are damaged ({', '.join(names[:_MAX_NAMED])}{more})"
        super().__init__(f"{path}: {problem}: {remedy}")
        self.path, self.damaged = path, dict(damaged)

    def with_remedy(self, remedy: str) -> DamagedModelError:
        """Return the same error with another remedy."""
        return DamagedModelError(self.path, self.damaged, remedy)


class NonFiniteLogitsError(ModelError):
    """The model produced NaN or infinity, so there is no next token to choose."""


class TemplateError(ModelError):
    """A chat template that is broken, asks for what it may not have, or runs past its limits."""


class SessionError(QwchatError):
    """A saved conversation that is missing, damaged, or in use elsewhere."""


class SessionInUseError(SessionError):
    """A saved conversation that another process has open."""


class PromptTooLongError(QwchatError):
    """A prompt that does not fit in the context.

    The command line and the chat name their own ways to make it fit (`with_advice`).

    Args:
        tokens: length of the prompt in tokens.
        context: positions the context has.
        longest: the longest context that the model was made for.
        description: what to say instead of the usual, without a remedy.
        remedy: what to do instead of the usual.
    """

    def __init__(
        self,
        tokens: int,
        context: int,
        longest: int,
        description: str | None = None,
        remedy: str = "shorten the prompt",
    ) -> None:
        self.description = description or (
            f"the prompt has {tokens:,} tokens and the context holds {context:,}, one of them for the answer"
        )
        self.tokens, self.context, self.longest, self.remedy = tokens, context, longest, remedy
        longer = f", or use a longer context (up to {longest:,} tokens)" if self.longer_context_fits else ""
        super().__init__(f"{self.description}: {remedy}{longer}")

    def with_advice(self, shorter: str) -> ArgumentMessage:
        """Return the message with `shorter`, how a prompt gets shorter at the place where this is read."""
        advice = f"{self.description}: {shorter}"
        if self.longer_context_fits:
            allows = f" allows a longer context (up to {self.longest:,} tokens with this model)"
            return ArgumentMessage(advice, ", or ", SuggestedArgument("context", ...), allows)
        full = self.context >= self.longest
        return ArgumentMessage(advice, f" ({self.longest:,} tokens are the maximum of this model)" if full else "")

    @property
    def longer_context_fits(self) -> bool:
        """Whether the model can have a context in which the prompt fits."""
        return max(self.tokens, self.context) < self.longest


class NotEnoughMemoryError(QwchatError):
    """The machine cannot give the memory that the model, its cache or its work space needs."""


class SnapshotError(QwchatError):
    """A snapshot of the KV cache that cannot be used or written; the tokens are read again instead."""


class ConstraintError(QwchatError):
    """A reply that does not meet the constraint it was asked to meet, or a constraint that cannot be followed."""
