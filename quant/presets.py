"""Presets: the format of each kind of matrix.

They are separate from `quant.policy` so that help texts can list them without importing NumPy.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Preset:
    """Formats that a conversion gives to the tensors of a model.

    Attributes:
        summary: one line for help texts.
        matrices: format of the matrices. None stores them unquantised.
        head: format of the head, or of the embedding that serves as head. None: the format of `matrices`.
        embedding: format of an embedding that does not serve as head. None: the format of `matrices`.
        sensitive: format of the sensitive matrices of the first layers. None: the format of `matrices`.
    """

    summary: str
    matrices: str | None = None
    head: str | None = None
    embedding: str | None = None
    sensitive: str | None = None


PRESETS = {
    "q4": Preset("4 bits; 6 in embedding, head, first layers", "q4", head="q6", embedding="q6", sensitive="q6"),
    "q4-small": Preset("4 bits; 6 in the head", "q4", head="q6"),
    "q6": Preset("6 bits", "q6"),
    "q8": Preset("8 bits", "q8"),
    "lin4": Preset("4 bits, linear with zero points; 8 in the head", "lin4", head="lin8"),
    "lin8": Preset("8 bits, linear", "lin8"),
    "dense": Preset("unquantised: bf16 or f32, as in the checkpoint"),
}
"""Presets by name. Every grouped format that is not listed is a preset as well: all matrices in that format."""
DEFAULT_PRESET = "q4"
"""Default for a source that is not quantised."""
IMPORTED_PRESET = "imported"
"""Default for a quantised source, and only for those."""
IMPORTED = Preset("formats of a quantised source; q8 where it has none", "q8")
"""Formats of the matrices whose format cannot be kept."""
