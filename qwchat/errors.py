"""Expected errors of qwchat.

Each message is one line that says what happened, where, and what to do. Messages name arguments (`quant.wording`),
never flags. `qwchat.cli.exit_codes` maps these classes to exit codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from quant.wording import ArgumentMessage, SuggestedArgument

_MAX_NAMED = 3


class QwchatError(Exception):
    """Base class of all expected errors of qwchat."""


class UsageError(QwchatError):
    """A request that cannot be carried out as given, such as an option out of range."""


class ModelError(QwchatError):
    """A model that is missing, incomplete or damaged."""


class DamagedModelError(ModelError):
    """A model whose files do not match the checksums in its manifest.

    Args:
        path: the model folder.
        damaged: what is wrong with each damaged tensor or file, by its displayed name; at least one.
        remedy: what the user can do.
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
    """A model that computed NaN or infinity, so that no token can be sampled."""


class TemplateError(ModelError):
    """A chat template that is invalid, uses forbidden features or exceeds its limits."""


class SessionError(QwchatError):
    """A saved session that is missing, damaged or in use by another process."""


class SessionInUseError(SessionError):
    """A saved session that another process has open."""


class PromptTooLongError(QwchatError):
    """A prompt that does not fit in the context window.

    The command line and the chat add their own advice with `with_advice`.

    Args:
        tokens: length of the prompt in tokens.
        context: size of the context window.
        longest: longest context window that the model supports.
        description: replaces the default description, without a remedy.
        remedy: replaces the default remedy.
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
            f"the prompt has {tokens:,} tokens and the context holds {context:,}, including one for the reply"
        )
        self.tokens, self.context, self.longest, self.remedy = tokens, context, longest, remedy
        longer = f", or use a longer context (up to {longest:,} tokens)" if self.longer_context_fits else ""
        super().__init__(f"{self.description}: {remedy}{longer}")

    def with_advice(self, shorter: str) -> ArgumentMessage:
        """Return the message with `shorter`, the advice on shortening the prompt, and a longer context if one fits."""
        advice = f"{self.description}: {shorter}"
        if self.longer_context_fits:
            allows = f" allows a longer context (up to {self.longest:,} tokens with this model)"
            return ArgumentMessage(advice, ", or ", SuggestedArgument("context", ...), allows)
        full = self.context >= self.longest
        return ArgumentMessage(advice, f" (this model supports at most {self.longest:,} tokens)" if full else "")

    @property
    def longer_context_fits(self) -> bool:
        """True if the model supports a context window in which the prompt fits."""
        return max(self.tokens, self.context) < self.longest


class NotEnoughMemoryError(QwchatError):
    """There is not enough memory for the model, its KV cache or its work space."""


class GpuError(QwchatError):
    """A GPU or a driver that cannot be used."""


class GpuLostError(GpuError):
    """A GPU that stopped during a computation: this process cannot use it again."""


class GpuMemoryError(NotEnoughMemoryError):
    """There is not enough memory on a GPU."""


class HubError(QwchatError):
    """A model hub that does not answer, or not with what it announced."""


class ServerError(QwchatError):
    """A server that cannot start."""


class EndpointError(QwchatError):
    """A server that replies instead of the engine does not answer, or not as it should."""


class SnapshotError(QwchatError):
    """A saved KV cache that cannot be used or written; the tokens are evaluated again instead."""


class ConstraintError(QwchatError):
    """A reply that does not meet its constraint, or a constraint that cannot be applied."""
