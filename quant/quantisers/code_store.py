"""The compiled quantisers of this machine, as kept in the user's cache folder."""

from __future__ import annotations

from quant.native.object_store import ObjectStore

SYMBOL_PREFIX = "quant_"
CODE_STORE = ObjectStore(
    "quantisers-", ("quant.quantisers", "quant.quantisers.compiled", "quant.formats", "quant.native")
)
