"""Imports that must not see what the working folder and the environment hold for them."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_PREFIXES = ("NUMBA_", "LLVMLITE_")
# VS_PROFILER makes Numba write debug information into all code.
_VARIABLES = ("VS_PROFILER",)
# Intel's library of vector functions would leave symbols in kept code that only Numba loads.
_OVERRIDES = {"NUMBA_DISABLE_INTEL_SVML": "1"}
# Without a parser Numba leaves `.numba_config.yaml` of the working folder alone, but for a warning.
_YAML_MODULE = "yaml"


def _is_hidden(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _VARIABLES


@contextmanager
def clean_import() -> Iterator[None]:
    """Hide settings of Numba and llvmlite while they are imported: variables, and the parser of Numba's file.

    `os.environ` is changed meanwhile, so enter this before threads are started.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _is_hidden(name)}
    parser = sys.modules.pop(_YAML_MODULE, None)
    os.environ.update(_OVERRIDES)
    sys.modules[_YAML_MODULE] = None  # type: ignore[assignment]  # Python's way to say that an import fails.
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        del sys.modules[_YAML_MODULE]
        if parser is not None:
            sys.modules[_YAML_MODULE] = parser
        for name in _OVERRIDES:
            os.environ.pop(name, None)
        os.environ.update(hidden)
