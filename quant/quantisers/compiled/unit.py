"""The unit of the quantisers' compiled functions."""

from __future__ import annotations

from quant.native.compiler import Unit, warm_up
from quant.quantisers.code_store import PREFIX, QUANTISERS

__all__ = ["UNIT", "standalone", "warm_up"]

UNIT = Unit(QUANTISERS, PREFIX)
standalone = UNIT.standalone
