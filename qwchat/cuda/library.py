"""Load the shared library of the NVIDIA driver. A machine without one finds out here, at the cost of one look-up."""

from __future__ import annotations

import ctypes

LIBRARY = "libcuda.so.1"


def load_library(name: str = LIBRARY) -> ctypes.CDLL:
    """Return a shared library. Raises GpuError if the machine does not have it."""
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        from qwchat.cuda.driver_errors import no_driver

        raise no_driver(name) from error
