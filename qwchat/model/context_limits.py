"""The context window of a model, on any device."""

from __future__ import annotations

from quant.model_config import ModelConfig
from quant.wording import Argument, ArgumentMessage
from qwchat.errors import UsageError
from qwchat.limits import DEFAULT_CONTEXT


def context_limit(config: ModelConfig) -> int:
    """Return the positions that the model supports: with YaRN, its factor times the original length."""
    yarn = config.rope_scaling
    if yarn is None:
        return config.max_position_embeddings
    return max(config.max_position_embeddings, int(yarn.factor * yarn.original_max_position_embeddings))


def choose_context(config: ModelConfig, requested: int | None) -> int:
    """Return the number of positions of a KV cache.

    Args:
        config: the model's.
        requested: the wanted number; None for the model's own, but not more than DEFAULT_CONTEXT.

    Raises:
        UsageError: the model does not support that many positions.
    """
    limit = context_limit(config)
    if requested is None:
        return min(limit, DEFAULT_CONTEXT)
    if not 1 <= requested <= limit:
        limits = f"from 1 to {limit:,} tokens, the maximum of this model"
        raise UsageError(ArgumentMessage(Argument("context"), f" must be {limits}, not {requested:,}"))
    return requested
