"""Compiled kernels of this machine, stored in the user's cache folder."""

from __future__ import annotations

from quant.formats import FORMATS
from quant.native.object_store import ObjectStore

SOURCES = ("qwchat.cpu", "qwchat.cpu.kernels", "quant.formats", "quant.native")
# The format records decide about the code as well, and a test may add records that no source file defines.
_RECORDS = repr(list(FORMATS.values()))
KERNELS = ObjectStore("kernels-", SOURCES, extra_key=_RECORDS)
# In a store of their own, since only `qwchat bench` loads them.
PROBES = ObjectStore("kernels-", SOURCES, "probes", extra_key=_RECORDS)
PROBES_PREFIX = "probe_"
PROBE_CHAINS = 12  # independent sums: enough to hide the latency of a dot product
