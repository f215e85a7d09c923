"""llvmlite, imported with its variables hidden. Only this module and `backend` import it."""

from __future__ import annotations

from quant.native.clean_import import clean_import

with clean_import():
    import llvmlite.binding as binding

__all__ = ["binding"]
