"""Sensitivities file: the divergence that each matrix of a model causes in each format, as untrusted JSON.

    {"format": "qwchat-sensitivities", "source": {"name", "fingerprint"}, "text": {"name", "tokens"},
     "tensors": {NAME: {FORMAT: mean KL divergence in nats}}}

Only `tensors` is required, so that a file can be written by hand. Without a fingerprint, any model with these matrices
may use it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from quant.errors import ArgumentError
from quant.json_fields import JsonFields
from quant.quality import MAX_DIVERGENCE
from quant.safe_files import read_json_object

FORMAT_NAME = "qwchat-sensitivities"
_MAX_BYTES = 16 << 20
_MAX_FORMATS = 32


@dataclass(frozen=True)
class Sensitivities:
    """Divergences of the matrices of one model.

    Attributes:
        path: the file, for messages.
        fingerprint: fingerprint of the checkpoint; None if the file does not say.
        tensors: name of a matrix -> format -> mean KL divergence in nats.
    """

    path: Path
    fingerprint: str | None
    tensors: Mapping[str, Mapping[str, float]]


def read_sensitivities(path: Path) -> Sensitivities:
    """Read a file. Raises ArgumentError if it is missing, damaged or has invalid values."""
    fields = JsonFields(read_json_object(path, ArgumentError, _MAX_BYTES), str(path), ArgumentError, "; measure again")
    if fields.text("format", FORMAT_NAME) != FORMAT_NAME:
        raise fields.invalid(f"the format is not {FORMAT_NAME}")
    source = fields.inner("source") if fields.values.get("source") is not None else None
    tensors = fields.inner("tensors", "")
    found = {}
    for name in tensors.values:
        values = tensors.inner(name, f"tensor {name[:200]!r}")
        if len(values.values) > _MAX_FORMATS:
            raise values.invalid(f"there are more than {_MAX_FORMATS} formats")
        found[name] = {kind: values.number(kind, 0, MAX_DIVERGENCE) for kind in values.values}
    return Sensitivities(path, None if source is None else source.text("fingerprint", None), found)
