"""Find the module that packs a format."""

from __future__ import annotations

import importlib
from types import ModuleType

from quant.errors import FormatError
from quant.formats import find_format


def quantiser_of(name: str) -> ModuleType:
    """Return the quantiser module of format `name`. Raises FormatError for a format that is unknown or without one."""
    quantiser = find_format(name).quantiser
    if quantiser is None:
        raise FormatError(f"format {name} cannot be made from float values; choose another format")
    return importlib.import_module(quantiser)
