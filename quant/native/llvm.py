"""llvmlite, imported with its variables hidden. The only place that imports it, apart from `backend`."""

from __future__ import annotations

from quant.native.clean_import import masked

with masked():
    import llvmlite.binding as binding

__all__ = ["binding"]
