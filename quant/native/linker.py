"""Object code in this process: loaded with LLVM's linker, called through ctypes, without Numba."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from quant.native.object_store import ObjectStore


class Linker:
    """Loads objects into this process. They stay: threads may run them until the process ends."""

    def __init__(self) -> None:
        from quant.native.llvm import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = _keep_alive(llvm.create_lljit_compiler(suppress_errors=True))
        self._count = 0
        self.addresses: dict[str, int] = {}
        """Where the symbols are that have been loaded."""

    def add(self, symbol: str, code: bytes) -> int:
        """Load an object and return the address of `symbol` in it.

        It may use the symbols loaded before, and those of the process: the C library.

        Raises:
            RuntimeError: it needs other symbols, or is not an object for this machine.
        """
        from quant.native.llvm import binding as llvm

        builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol)
        for known, address in self.addresses.items():
            builder.import_symbol(known, address)
        self._count += 1  # A name cannot be used twice, not even after a failure.
        library = _keep_alive(builder.link(self._jit, f"{symbol}.{self._count}"))
        self.addresses[symbol] = library[symbol]
        return self.addresses[symbol]


def _keep_alive(thing: Any) -> Any:
    """Return `thing`, never to be freed: at the interpreter's end threads may still be running its code."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


@cache
def linker() -> Linker:
    """Return the linker of this process."""
    return Linker()


def callable_at(address: int, arguments: int) -> Callable[..., Any]:
    """Return the compiled function at `address`: 64-bit integers, `arguments` of them, to one. It frees the GIL."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)
    return prototype(address)


def link_objects(objects: Mapping[str, bytes], wanted: Iterable[str]) -> dict[str, int] | None:
    """Load all `objects`, each after those it needs.

    Returns:
        The addresses of `wanted`, or None where one is missing.
    """
    wanted = set(wanted)
    if not wanted <= set(objects):
        return None
    here = linker()
    try:
        for symbol, code in objects.items():
            if symbol not in here.addresses:
                here.add(symbol, code)
    except RuntimeError:  # Made by another version of what it needs: compile again.
        return None
    return {symbol: here.addresses[symbol] for symbol in wanted}


def linked_addresses(store: ObjectStore, wanted: Iterable[str]) -> dict[str, int] | None:
    """Return the addresses of `wanted`, from this process or from `store`; None where they must be compiled."""
    wanted = set(wanted)
    loaded = linker().addresses
    if wanted <= set(loaded):
        return {symbol: loaded[symbol] for symbol in wanted}
    return link_objects(store.load(), wanted)
