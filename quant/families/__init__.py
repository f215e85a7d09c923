"""Model families, one file each, and functions that look up the family of a model.

To add a family, write a file with a `Family` record and add it to `FAMILIES`. Reading config.json, checking tensors and
choosing formats follow from the record.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from quant.errors import CheckpointError, QuantError
from quant.families.config_reader import read_fields
from quant.families.family import Family, Shapes
from quant.families.qwen2 import QWEN2
from quant.families.qwen3 import QWEN3
from quant.json_fields import JsonFields, short_repr
from quant.model_config import ModelConfig
from quant.safe_files import read_json_object

FAMILIES = {family.model_type: family for family in (QWEN2, QWEN3)}
"""Supported families by the "model_type" of config.json."""
MAX_CONFIG_BYTES = 1 << 20  # published files have about 700

__all__ = [
    "FAMILIES",
    "MAX_CONFIG_BYTES",
    "Family",
    "Shapes",
    "expected_tensors",
    "family_of",
    "parameter_count",
    "parse_config",
    "read_config",
]


def read_config(folder: str | Path, error: type[QuantError] = CheckpointError) -> ModelConfig:
    """Read `folder/config.json`. Raises `error` with a message that names the file and the key."""
    file = Path(folder) / "config.json"
    return parse_config(read_json_object(file, error, MAX_CONFIG_BYTES), str(file), error)


def parse_config(
    values: Mapping[str, Any], where: str = "config.json", error: type[QuantError] = CheckpointError
) -> ModelConfig:
    """Return the hyperparameters in a parsed config.json.

    Args:
        values: the JSON object.
        where: name of the source for messages.
        error: class of the exception for invalid or unsupported values.
    """
    fields = JsonFields(values, where, error)
    model_type = values.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        *others, last = map(repr, FAMILIES)
        raise fields.invalid(
            f"model_type is {short_repr(model_type)}; only {', '.join(others)} and {last} are supported"
        )
    return read_fields(fields, family)


def family_of(config: ModelConfig) -> Family:
    """Return the family of a model."""
    return FAMILIES[config.model_type]


def expected_tensors(config: ModelConfig) -> Shapes:
    """Return the shape of every tensor by its Hugging Face name, in module order. Matrices are (out, in)."""
    return family_of(config).tensor_shapes(config)


def parameter_count(config: ModelConfig) -> int:
    """Return the number of weights. A tied head counts once."""
    return sum(math.prod(shape) for shape in expected_tensors(config).values())
