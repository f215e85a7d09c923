"""What one family of models says of itself: everything in which it differs from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant.json_fields import Values
from quant.model_config import ModelConfig

Shapes = dict[str, tuple[int, ...]]
"""Tensor name -> shape, in module order; matrices are (out, in)."""


@dataclass(frozen=True)
class Family:
    """One family of decoders, as its file in this folder describes it.

    Attributes:
        model_type: what config.json says under "model_type".
        title: the family's name, for messages.
        keys: field of `ModelConfig` -> key of config.json, for every size that config.json must give.
        refuse: called with config.json before it is read; raises for options that the forward pass does not compute.
        tensors: every tensor of a model, named as in its checkpoints. Biases and norms that are not among them do not
            exist: the engine asks no other place.
        sizes: the values of config.json behind the shape of one tensor, for messages.
        sensitive: ends of names of matrices that lose most when rounded, which presets may store in more bits.
        derived: ends of names of tensors that old checkpoints carry although they follow from config.json.
        layers: beginning of the names of a layer's tensors; the layer's number follows.
        embedding: the matrix of token embeddings, which is the head of a tied model as well.
        head: the head of a model that is not tied.
    """

    model_type: str
    title: str
    keys: Mapping[str, str]
    refuse: Callable[[Values], None]
    tensors: Callable[[ModelConfig], Shapes]
    sizes: Callable[[str, ModelConfig], str]
    sensitive: tuple[str, ...]
    derived: tuple[str, ...]
    layers: str
    embedding: str
    head: str

    def layer_of(self, name: str) -> int | None:
        """Return the number of the layer that tensor `name` belongs to; None outside of the layers."""
        if not name.startswith(self.layers):
            return None
        number = name.removeprefix(self.layers).partition(".")[0]
        return int(number) if number.isdecimal() and len(number) < 6 else None

    def is_head(self, name: str, config: ModelConfig) -> bool:
        """Return whether tensor `name` gives the logits: the head, or the embedding of a tied model."""
        return name == (self.embedding if config.tie_word_embeddings else self.head)
