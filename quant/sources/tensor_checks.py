"""Compare the tensors of a source with its config."""

from __future__ import annotations

from collections.abc import Iterable

from quant.errors import CheckpointError
from quant.families import Family, Shapes, expected_tensors, family_of
from quant.model_config import ModelConfig
from quant.sources.source import Source, describe_tensors


def check_tensors(source: Source) -> list[str]:
    """Compare the tensors of `source` with its config. Return notices to show to the user.

    The head of a tied model and the rotary frequencies of old checkpoints are ignored, with a notice.

    Raises:
        CheckpointError: a tensor is missing or unexpected, or its shape contradicts the config. The message names both
            shapes.
    """
    config = source.config
    family, expected = family_of(config), expected_tensors(config)
    present = set(source.tensors)
    notices = []
    for name in sorted(present - set(expected)):
        if name == family.head_name and config.tie_word_embeddings:
            notices.append(f"{name} is ignored: tie_word_embeddings is true, so the embedding is the head")
            present.remove(name)
        elif name.endswith(family.derived_suffixes):
            notices.append(f"{name} is ignored: rotary frequencies are derived from config.json")
            present.remove(name)
    shapes = {name: source.tensors[name].shape for name in present}
    contradictions = [
        *_layer_contradiction(present, family, config),
        *_shape_contradictions(shapes, expected, family, config),
    ]
    if contradictions:
        raise CheckpointError(
            f"{source.path}: config.json contradicts the tensors: {'; '.join(contradictions)}; "
            "one of the two is from another model"
        )
    missing = [name for name in expected if name not in present]
    if missing:
        raise CheckpointError(
            f"{source.path}: config.json requires {describe_tensors(missing)}, which the checkpoint does not have; "
            "download the checkpoint again or correct config.json"
        )
    unexpected = sorted(present - set(expected))
    if unexpected:
        raise CheckpointError(
            f"{source.path} contains {describe_tensors(unexpected)}, which a {family.title} model with this "
            "config.json does not have; is it the right checkpoint?"
        )
    return notices


def _layer_contradiction(names: Iterable[str], family: Family, config: ModelConfig) -> list[str]:
    """Return a message if the layer count is wrong. It is clearer than a list of missing tensors."""
    layers = [layer for layer in map(family.layer_of, names) if layer is not None]
    if not layers or max(layers) + 1 == config.num_layers:
        return []
    return [f"{family.config_keys['num_layers']} is {config.num_layers}, but the tensors have {max(layers) + 1} layers"]


def _shape_contradictions(shapes: Shapes, expected: Shapes, family: Family, config: ModelConfig) -> list[str]:
    """Return a message with the first wrong shape, the config values that it contradicts, and the number of others."""
    wrong = [name for name, shape in expected.items() if shapes.get(name, shape) != shape]
    if not wrong:
        return []
    first = wrong[0]
    more = f" (and {len(wrong) - 1} more shapes)" if len(wrong) > 1 else ""
    return [
        f"{first} has shape {list(shapes[first])}, but {family.describe_sizes(first, config)} "
        f"would need {list(expected[first])}{more}"
    ]
