"""The names of the presets, apart from what they mean (`quant.policy`), so that a help text needs no arrays."""

from __future__ import annotations

PRESETS = {
    "q4": "4 bits, 8 in the head and the layers that need it",
    "q4-small": "4 bits, 8 in the head",
    "q8": "8 bits",
    "lin4": "4 bits, linear with zero points; 8 in the head",
    "lin8": "8 bits, linear",
    "dense": "bf16 or f32, as the checkpoint has it",
}
"""What `quant.convert` can make: preset -> what it is. The first one is the default."""
