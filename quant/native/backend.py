"""Numba and llvmlite's builder of code. The only place that imports Numba; everything else takes its parts from here.

Numba reads `.numba_config.yaml` of the working folder and every `NUMBA_*` variable, when it is imported and again
before each compilation. Either can move its cache of pickled code into a folder that somebody else has filled, or let
it write files. Here both are hidden during the import, and nothing is read afterwards.
"""

from __future__ import annotations

from quant.native.clean_import import clean_import

with clean_import():
    from llvmlite import ir
    from numba import cfunc, from_dtype, njit, types
    from numba.core import cgutils, compiler, config, registry
    from numba.core.compiler_lock import global_compiler_lock
    from numba.extending import intrinsic, models, register_model
    from numba.np.arrayobj import make_array, populate_array

__all__ = [
    "cfunc",
    "cgutils",
    "compiler",
    "config",
    "from_dtype",
    "global_compiler_lock",
    "intrinsic",
    "ir",
    "make_array",
    "models",
    "njit",
    "populate_array",
    "register_model",
    "registry",
    "types",
]

# The compiler asks for this before each function; a program that has imported Numba before us loses no more than
# changes of its variables while it runs.
config.reload_config = lambda: None
