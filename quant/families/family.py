"""What one family of models says of itself: everything in which it differs from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant.json_fields import JsonFields
from quant.model_config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape, in module order; matrices are (out, in)."""


@dataclass(frozen=True)
class Family:
    """One family of decoders, as its file in this folder describes it.

    Attributes:
        model_type: what config.json says under "model_type".
        title: the family's name, for messages.
        config_keys: field of `ModelConfig` -> key of config.json, for every size that config.json must give. Without
            `head_dim` among them, it is hidden_size / num_heads unless config.json says otherwise.
        check_supported: called with config.json before it is read; raises for options that the forward pass does not
            compute.
        tensor_shapes: every tensor of a model, named as in its checkpoints. Biases and norms that are not among them
            do not
            exist: the engine asks no other place.
        describe_sizes: the values of config.json behind the shape of one tensor, for messages.
        sensitive_suffixes: ends of names of matrices that lose most when rounded, which presets may store in more bits.
        derived_suffixes: ends of names of tensors that old checkpoints carry although they follow from config.json.
        layer_prefix: beginning of the names of a layer's tensors; the layer's number follows.
        embedding_name: the matrix of token embeddings, which is the head of a tied model as well.
        head_name: the head of a model that is not tied.
    """

    model_type: str
    title: str
    config_keys: Mapping[str, str]
    check_supported: Callable[[JsonFields], None]
    tensor_shapes: Callable[[ModelConfig], Shapes]
    describe_sizes: Callable[[str, ModelConfig], str]
    sensitive_suffixes: tuple[str, ...]
    derived_suffixes: tuple[str, ...]
    layer_prefix: str
    embedding_name: str
    head_name: str

    def layer_of(self, name: str) -> int | None:
        """Return the number of the layer that tensor `name` belongs to; None outside of the layers."""
        if not name.startswith(self.layer_prefix):
            return None
        number = name.removeprefix(self.layer_prefix).partition(".")[0]
        return int(number) if number.isdecimal() and len(number) < 6 else None

    def is_head(self, name: str, config: ModelConfig) -> bool:
        """Return whether tensor `name` gives the logits: the head, or the embedding of a tied model."""
        return name == (self.embedding_name if config.tie_word_embeddings else self.head_name)
