"""The compiled forward pass: loaded from the cache without Numba, or compiled if the cache does not have it."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from quant.native.linker import callable_at, linked_addresses
from quant.native.object_store import CompileProgress
from qwchat.cpu.kernels.kernel_store import KERNELS
from qwchat.cpu.kernels.thread_team import EntryPoints

# Functions that Python calls, with the number of their 64-bit integer arguments.
_ENTRIES = {"lead": 4, "serve": 5, "wake": 3, "announce_end": 1}
_SYMBOLS = {name: f"qwchat_{name}" for name in _ENTRIES}


def is_compiled() -> bool:
    """Return whether a start needs no compiler: this process or the cache has all of the code."""
    return _from_cache() is not None


def load_entry_points(
    progress: CompileProgress | None = None, waiting: Callable[[], object] | None = None
) -> EntryPoints:
    """Return the compiled forward pass, compiling it if necessary.

    Its `arguments` are the addresses of the STATE record and of the LAYER records.

    Args:
        progress: called with each kernel's name and cost before it is compiled.
        waiting: called before waiting for another process that compiles the same code.
    """
    addresses = _from_cache() or _compiled(progress, waiting)
    functions = {name: callable_at(addresses[_SYMBOLS[name]], count) for name, count in _ENTRIES.items()}
    return EntryPoints(**functions)


def _from_cache() -> dict[str, int] | None:
    return linked_addresses(KERNELS, _SYMBOLS.values())


def _compiled(progress: CompileProgress | None, waiting: Callable[[], object] | None) -> dict[str, int]:
    with KERNELS.exclusive(waiting):
        found = _from_cache()  # Another process may have compiled meanwhile.
        if found is not None:
            return found
        if progress is not None:
            progress("the compiler", 0.0)
        from qwchat.cpu.kernels import jit

        jit.warm_up()
        return jit.compile_all(lambda: importlib.import_module("qwchat.cpu.forward"), progress)
