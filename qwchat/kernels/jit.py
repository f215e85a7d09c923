"""The one place with Numba's options, and the home of compiled code.

Compiled kernels are kept in the platform's cache folder, under a name that hashes every source file that goes into
them, where they are installed, the versions of Numba and llvmlite, the CPU and the SIMD level: Numba's own cache sees
neither an edit in another file nor the body of an intrinsic.
"""

from __future__ import annotations

import atexit
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm
import numba
import platformdirs

import quant.formats
from qwchat.kernels.level import current_level, host_features

# Feature lists that keep LLVM below 64-byte registers, for the 32-byte levels on a larger machine.
_HASWELL = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+movbe"
PROCESSORS = {"avxvnni": ("haswell", f"{_HASWELL},+avxvnni"), "avx2": ("haswell", _HASWELL)}


@cache
def cache_folder() -> Path:
    """Where this version's kernels are kept for this machine and level; it may not exist yet."""
    package = Path(__file__).resolve().parent.parent
    # Numba files code under the path of its source, so two installations cannot share it.
    digest = hashlib.sha256(str(package).encode())
    for folder in (package / "kernels", package / "model", Path(quant.formats.__file__).parent):
        for source in sorted(folder.glob("*.py")):
            digest.update(source.read_bytes())
    machine = (numba.__version__, llvmlite.__version__, llvm.get_host_cpu_name(), current_level())
    digest.update("|".join(machine).encode())
    digest.update(str(sorted(host_features().items())).encode())
    root = os.environ.get("QWCHAT_CACHE") or platformdirs.user_cache_dir("qwchat", appauthor=False)
    return Path(root) / f"kernels-{digest.hexdigest()[:16]}"


@cache
def _writable_folder() -> Path:
    """The cache folder, or one for this process alone where that cannot be written: compiled code is loaded and run,
    so it must not lie where others may write."""
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    private = tempfile.mkdtemp(prefix="qwchat-kernels-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def is_compiled() -> bool:
    """Whether a complete set of kernels is in the cache, so that a start compiles nothing."""
    return (cache_folder() / "complete").exists()


def mark_compiled() -> None:
    """Notes that every kernel has been compiled and stored."""
    (_writable_folder() / "complete").touch()


def _configure() -> None:
    numba.config.CACHE_DIR = str(_writable_folder())
    if current_level() in PROCESSORS:
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = PROCESSORS[current_level()]


_configure()


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` without the GIL, bounds checks or exceptions, and keeps the machine code on disk.

    ``fastmath`` stays off: it would make ``isnan`` false and let the order of sums vary between levels.
    """
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", cache=True)(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Like :func:`kernel`, for small pieces that LLVM shall inline into the kernel that calls them."""
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", forceinline=True)(function)


_standalone: dict[str, Any] = {}


def standalone(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function apart from its callers, who reach it by symbol.

    Numba links a jitted callee into each caller's library and optimises it there again; the matrix kernels, with all
    their formats, would be compiled some ten times over.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        compiled = numba.cfunc(signature, boundscheck=False, error_model="numpy", cache=True)(function)
        symbol = f"qwchat_{function.__name__}"
        _standalone[symbol] = compiled  # keeps the code alive, and readable for the tests
        llvm.add_symbol(symbol, compiled.address)
        return numba.types.ExternalFunction(symbol, signature)

    return decorate


def machine_code(symbol: str) -> str:
    """The assembly of a standalone function."""
    # Numba gives a C callback no public way to its code.
    text: str = _standalone[symbol]._library.get_asm_str()
    return text
