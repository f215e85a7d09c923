"""The compiled kernels of this machine, as kept in the user's cache folder."""

from __future__ import annotations

from quant.formats import FORMATS
from quant.native.object_store import ObjectStore

SOURCES = ("qwchat.cpu", "qwchat.cpu.kernels", "quant.formats", "quant.native")
# The records decide about the code, too: they are data, and a test may add one to those of the sources.
_RECORDS = repr(list(FORMATS.values()))
KERNELS = ObjectStore("kernels-", SOURCES, extra_key=_RECORDS)
# Apart from the kernels, since only `qwchat bench` loads them.
PROBES = ObjectStore("kernels-", SOURCES, "probes", extra_key=_RECORDS)
PROBES_PREFIX = "probe_"
PROBE_CHAINS = 12  # independent accumulators: enough to hide the latency of a dot product
