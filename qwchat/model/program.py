"""The compiled forward pass, from the cache without Numba; compiled where the cache has none that fits."""

from __future__ import annotations

import importlib

from qwchat.kernels import objects
from qwchat.kernels.threads import Program

# What Python calls, and how many 64-bit integers it takes.
_ENTRIES = {"lead": 5, "serve": 6, "rouse": 3, "announce_end": 1}
_SYMBOLS = {name: f"qwchat_{name}" for name in _ENTRIES}


def is_compiled() -> bool:
    """Whether a start compiles nothing, because this process or the cache has a complete program."""
    return _from_cache() is not None


def load_program(progress: objects.Progress | None = None) -> Program:
    """The compiled forward pass; its arguments are the addresses of the STATE and LAYER records, and how many layers.

    ``progress`` is told what is being compiled, if anything is.
    """
    addresses = _from_cache() or _compiled(progress)
    functions = {name: objects.callable_at(addresses[_SYMBOLS[name]], count) for name, count in _ENTRIES.items()}
    return Program(**functions)


def _from_cache() -> dict[str, int] | None:
    loaded = objects.linker().addresses
    if set(_SYMBOLS.values()) <= set(loaded):
        return loaded
    return objects.link(objects.load(), _SYMBOLS.values())


def _compiled(progress: objects.Progress | None) -> dict[str, int]:
    from qwchat.kernels import jit

    return jit.compile_all(lambda: importlib.import_module("qwchat.model.forward"), progress)
