"""Invented formats for tests, which consist only of records.

The program

    python -m tests.quant.made_up_format FORMAT CHECKPOINT MODEL IDS.npy LOGITS.npz

registers the formats, converts CHECKPOINT into MODEL with preset FORMAT, and runs the token ids on the CPU engine.
`made_up` are the logits of all tokens at once, `one_by_one` those of each token on its own, and `known` those of the
same weights in a format of the project, if one can represent them.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from quant.formats import FORMATS, IntegerFormat, PackedTensor
from quant.formats.linear import LIN4, LIN8

SIX = IntegerFormat(
    name="six",
    quantiser="quant.quantisers.linear",
    bits=6,
    group_sizes=(64, 32),
    scale="float16",
    zero=32,
)
"""6-bit codes, symmetric, groups of 64."""

THREE = IntegerFormat(
    name="three",
    quantiser="quant.quantisers.linear",
    bits=3,
    group_sizes=(32,),
    stores_zeros=True,
    scale="float16",
    zero=4,
    allows_zeros=True,
)
"""3-bit codes in nibbles with zero points, groups of 32."""

CURVED = IntegerFormat(
    name="curved",
    quantiser="tests.quant.made_up_quantiser",
    bits=4,
    group_sizes=(64,),
    scale="int8",
    zero=100,
    table=(0, 30, 50, 65, 77, 86, 93, 100, 107, 114, 123, 135, 150, 170, 190, 200),
    row_scales=True,
)
"""4-bit codes of an uneven table, signed 8-bit scales in groups of 64, row scales, and an invented quantiser."""

MADE_UP = (SIX, THREE, CURVED)


def as_known(packed: PackedTensor) -> PackedTensor | None:
    """Return exactly the same weights in lin8 (for `six`) or lin4 (for `three`), or None for `curved`."""
    if packed.format == SIX.name:
        codes = SIX.codes(packed) + np.uint8(LIN8.zero - SIX.zero)
        return LIN8.pack(codes, SIX.scales(packed), packed.group_size)
    if packed.format == THREE.name:
        return LIN4.pack(THREE.codes(packed), THREE.scales(packed), packed.group_size, zeros=THREE.zeros(packed))
    return packed if packed.format == "vector" else None


def main() -> None:
    """Convert a model to an invented format and run it."""
    FORMATS.update({fmt.name: fmt for fmt in MADE_UP})
    # Import after this what is derived from the registry.
    from quant import convert
    from quant.container import open_model
    from tests.cpu.kernels.random_tensors import Folder
    from tests.generation.conversations import open_context

    name, source, destination, ids, logits = sys.argv[1:]
    for _ in convert(source, destination, preset=name, threads=1):
        pass
    folder = open_model(Path(destination))
    known = {tensor: as_known(folder.tensor(tensor)) for tensor in folder.names}
    folders: dict[str, Any] = {"made_up": folder}
    if None not in known.values():
        folders["known"] = Folder(folder.config, **known)
    found, tokens = {}, np.load(ids).tolist()
    for key, each in folders.items():
        with open_context(each, threads=2, context=128) as cached:
            found[key] = cached.logits(tokens)
            if key == "made_up":
                cached.truncate(0)
                found["one_by_one"] = cached.extend(tokens, 1)
    np.savez(logits, **found)


if __name__ == "__main__":
    main()
