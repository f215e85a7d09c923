"""Import Numba and llvmlite without their settings from the environment and the working folder."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_PREFIXES = ("NUMBA_", "LLVMLITE_")
# VS_PROFILER makes Numba add debug information to all code.
_VARIABLES = ("VS_PROFILER",)
# With Intel's SVML, the kept object code would refer to symbols that only Numba loads.
_OVERRIDES = {"NUMBA_DISABLE_INTEL_SVML": "1"}
# Without a YAML parser, Numba only warns about `.numba_config.yaml` and does not read it.
_YAML_MODULE = "yaml"


def _is_hidden(name: str) -> bool:
    return name.startswith(_PREFIXES) or name in _VARIABLES


@contextmanager
def clean_import() -> Iterator[None]:
    """Hide the environment variables of Numba and llvmlite, and the YAML parser, while the block imports them.

    This changes `os.environ` for the duration of the block, so use it before threads are started.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _is_hidden(name)}
    parser = sys.modules.pop(_YAML_MODULE, None)
    os.environ.update(_OVERRIDES)
    sys.modules[_YAML_MODULE] = None  # type: ignore[assignment]  # None makes an import fail.
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
