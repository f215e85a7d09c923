"""Compilation unit of the quantisers."""

from __future__ import annotations

from quant.native.compiler import CompilationUnit, warm_up
from quant.quantisers.code_store import CODE_STORE, SYMBOL_PREFIX

__all__ = ["UNIT", "standalone", "warm_up"]

UNIT = CompilationUnit(CODE_STORE, SYMBOL_PREFIX)
standalone = UNIT.standalone
