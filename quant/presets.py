"""The presets: which format each kind of matrix gets. Apart from `quant.policy`: a help text needs no arrays."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """What `quant.convert` can make.

    Attributes:
        summary: the preset in a few words.
        matrices: format of the matrices; None keeps them as they are.
        head: format of the head and of an embedding that is tied to it; None: that of the matrices.
        sensitive: format of the matrices that suffer most in the first and last layers; None: that of the matrices.
    """

    summary: str
    matrices: str | None = None
    head: str | None = None
    sensitive: str | None = None


PRESETS = {
    "q4": Preset("4 bits, 8 in the head and the layers that need it", "q4", head="q8", sensitive="q8"),
    "q4-small": Preset("4 bits, 8 in the head", "q4", head="q8"),
    "q8": Preset("8 bits", "q8"),
    "lin4": Preset("4 bits, linear with zero points; 8 in the head", "lin4", head="lin8"),
    "lin8": Preset("8 bits, linear", "lin8"),
    "dense": Preset("bf16 or f32, as the checkpoint has it"),
}
"""Preset by name. A format with groups that is missing here is a preset, too: all matrices in that format."""
DEFAULT_PRESET = "q4"
