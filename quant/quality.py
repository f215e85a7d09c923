"""Distance of a converted model from its source, as the manifest of its folder stores it.

`quant` does not run models: the caller of a conversion passes a function that measures (`quant.conversion`).
"""

from __future__ import annotations

from dataclasses import dataclass

from quant.json_fields import JsonFields

QUALITY_ENTRY = "quality"
MAX_DIVERGENCE = 1e6
"""Largest stored divergence, in nats."""
_MAX_TOKENS = (1 << 53) - 1


@dataclass(frozen=True)
class Quality:
    """Distance of a model's predictions from those of its source, on one text.

    Attributes:
        kl_mean: mean Kullback-Leibler divergence of the model's next-token distributions from the source's, in nats.
        kl_p999: 99.9 % of the tokens have a smaller divergence.
        same_top: share of tokens, 0 to 1, for which both have the same most likely token.
        tokens: number of predicted tokens.
        text: name of the text.
    """

    kl_mean: float
    kl_p999: float
    same_top: float
    tokens: int
    text: str


def read_quality(manifest: JsonFields) -> Quality | None:
    """Return the checked entry of a manifest; None if it has none. Raises the error of `manifest` if it is invalid."""
    if manifest.values.get(QUALITY_ENTRY) is None:
        return None
    entry = manifest.inner(QUALITY_ENTRY)
    return Quality(
        kl_mean=entry.number("kl_mean", 0, MAX_DIVERGENCE),
        kl_p999=entry.number("kl_p999", 0, MAX_DIVERGENCE),
        same_top=entry.number("same_top", 0, 1),
        tokens=entry.integer("tokens", 1, _MAX_TOKENS),
        text=entry.required_text("text"),
    )
