"""Load object code into this process with LLVM's linker and call it through ctypes, without Numba."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from quant.native.object_store import ObjectStore


class Linker:
    """Linker of this process. Objects stay loaded, since threads may run them until the process ends.

    Attributes:
        addresses: address of every loaded symbol.
    """

    def __init__(self) -> None:
        from quant.native.llvm import binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = _keep_alive(llvm.create_lljit_compiler(suppress_errors=True))
        self._count = 0
        self.addresses: dict[str, int] = {}

    def add(self, symbol: str, code: bytes) -> int:
        """Load an object and return the address of its symbol.

        The object may refer to symbols that were loaded earlier and to those of the C library.

        Args:
            symbol: symbol that the object exports.
            code: object code.

        Raises:
            RuntimeError: the object needs other symbols, or is not an object for this machine.
        """
        from quant.native.llvm import binding as llvm

        builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol(symbol)
        for known, address in self.addresses.items():
            builder.import_symbol(known, address)
        self._count += 1  # LLVM refuses a library name that was used before, even after a failure
        library = _keep_alive(builder.link(self._jit, f"{symbol}.{self._count}"))
        self.addresses[symbol] = library[symbol]
        return self.addresses[symbol]


def _keep_alive(value: Any) -> Any:
    """Return `value` after making sure that it is never freed: threads may run its code while the process exits."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(value))
    return value


@cache
def linker() -> Linker:
    """Return the linker of this process."""
    return Linker()


def callable_at(address: int, arguments: int) -> Callable[..., Any]:
    """Return a Python callable for compiled code. It releases the GIL.

    Args:
        address: address of a function that takes and returns 64-bit integers.
        arguments: number of its arguments.
    """
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)
    return prototype(address)


def link_objects(objects: Mapping[str, bytes], wanted: Iterable[str]) -> dict[str, int] | None:
    """Load objects and return the addresses of some symbols.

    Args:
        objects: object code by symbol; each object follows those that it refers to.
        wanted: symbols to return.

    Returns:
        Addresses by symbol, or None if a symbol is missing or an object cannot be loaded.
    """
    wanted = set(wanted)
    if not wanted <= set(objects):
        return None
    current = linker()
    try:
        for symbol, code in objects.items():
            if symbol not in current.addresses:
                current.add(symbol, code)
    except RuntimeError:  # compiled with another version of its dependencies; compile again
        return None
    return {symbol: current.addresses[symbol] for symbol in wanted}


def linked_addresses(store: ObjectStore, wanted: Iterable[str]) -> dict[str, int] | None:
    """Return the addresses of `wanted`, loaded from `store` if needed, or None if they must be compiled."""
    wanted = set(wanted)
    loaded = linker().addresses
    if wanted <= set(loaded):
        return {symbol: loaded[symbol] for symbol in wanted}
    return link_objects(store.load(), wanted)
