"""Store of the quantisers' compiled code."""

from __future__ import annotations

from quant.native.object_store import ObjectStore

SYMBOL_PREFIX = "quant_"
CODE_STORE = ObjectStore(
    "quantisers-", ("quant.quantisers", "quant.quantisers.compiled", "quant.formats", "quant.native")
)
