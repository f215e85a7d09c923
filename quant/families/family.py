"""Record of a model family: everything in which it differs from other families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant.json_fields import JsonFields
from quant.model_config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape, in module order. Matrices are (out, in)."""


@dataclass(frozen=True)
class Family:
    """One family of decoder models, described by its file in this package.

    Attributes:
        model_type: value of "model_type" in config.json.
        title: name of the family for messages.
        config_keys: field of `ModelConfig` -> key of config.json, for every size that config.json must give. If
            `head_dim` is not among them, its default is hidden_size / num_heads.
        check_supported: called with config.json before it is read. Raises for options that the forward pass does not
            implement.
        tensor_shapes: returns the shapes of all tensors, named as in the family's checkpoints. A bias or norm that it
            does not list does not exist: the engine has no other source for this.
        describe_sizes: returns the config.json values behind the shape of one tensor, for messages.
        sensitive_suffixes: suffixes of the matrices that lose most by rounding. Presets may store them in more bits.
        input_kinds: suffix of each matrix of a layer -> name of its input. Matrices with equal names share an input.
        derived_suffixes: suffixes of tensors in old checkpoints that can be derived from config.json and are ignored.
        layer_prefix: prefix of the names of a layer's tensors. The layer number follows.
        embedding_name: name of the token embeddings, which are also the head of a tied model.
        head_name: name of the head of a model that is not tied.
    """

    model_type: str
    title: str
    config_keys: Mapping[str, str]
    check_supported: Callable[[JsonFields], None]
    tensor_shapes: Callable[[ModelConfig], Shapes]
    describe_sizes: Callable[[str, ModelConfig], str]
    sensitive_suffixes: tuple[str, ...]
    input_kinds: Mapping[str, str]
    derived_suffixes: tuple[str, ...]
    layer_prefix: str
    embedding_name: str
    head_name: str

    def layer_of(self, name: str) -> int | None:
        """Return the layer number of tensor `name`, or None if it is not part of a layer."""
        if not name.startswith(self.layer_prefix):
            return None
        number = name.removeprefix(self.layer_prefix).partition(".")[0]
        return int(number) if number.isdecimal() and len(number) < 6 else None

    def is_head(self, name: str, config: ModelConfig) -> bool:
        """Return whether tensor `name` computes the logits: the head, or the embedding of a tied model."""
        return name == (self.embedding_name if config.tie_word_embeddings else self.head_name)

    def is_embedding(self, name: str, config: ModelConfig) -> bool:
        """Return whether tensor `name` is an embedding that does not compute the logits."""
        return name == self.embedding_name and not config.tie_word_embeddings
