"""The compiled kernels of this machine, as kept in the user's cache folder."""

from __future__ import annotations

from quant.native.store import ObjectStore

SOURCES = ("qwchat.cpu", "qwchat.cpu.kernels", "quant.formats", "quant.native")
KERNELS = ObjectStore("kernels-", SOURCES)
# Apart from the kernels, since only `qwchat bench` loads them.
PROBES = ObjectStore("kernels-", SOURCES, "probes")
