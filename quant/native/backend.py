"""Names of Numba and llvmlite that the compiler needs. Only this module imports Numba.

Numba reads `.numba_config.yaml` in the working folder and all `NUMBA_*` variables, when it is imported and before each
compilation. Either could move its cache of pickled code to a folder that another user controls, or make it write files.
This module hides both during the import and turns off the later reads.
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

# The compiler calls this before each function. A program that imported Numba earlier loses only the effect of later
# changes to its own variables.
config.reload_config = lambda: None
