"""Find the module that packs a format."""

from __future__ import annotations

import importlib
from types import ModuleType

from quant.formats import find_format


def quantiser_of(name: str) -> ModuleType:
    """Return the quantiser module of format `name`. Raises FormatError for an unknown format."""
    return importlib.import_module(find_format(name).quantiser)
