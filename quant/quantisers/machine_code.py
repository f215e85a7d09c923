"""Machine code of the quantisers: load it from the cache without Numba, or compile it."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quant.native.linker import callable_at, linked_addresses
from quant.quantisers.code_store import CODE_STORE, SYMBOL_PREFIX
from quant.quantisers.registry import quantiser_of


@dataclass(frozen=True)
class CompiledLoops:
    """Compiled functions of a quantiser.

    Attributes:
        module: dotted name of the module that compiles them when it is imported.
        arguments: name of each function -> number of its 64-bit integer arguments.
        cost: time to compile all of them, in seconds on an AMD EPYC. Only ratios matter.
    """

    module: str
    arguments: Mapping[str, int]
    cost: float


@dataclass(frozen=True)
class CompilingQuantiser:
    """The loops of a format are about to be compiled.

    Attributes:
        format: name of the format, or "error feedback"; "" while the compiler itself is loaded.
        cost: compile time relative to that of other code; 0 while the compiler is loaded.
    """

    format: str
    cost: float


@dataclass(frozen=True)
class WaitingForCompiler:
    """Another process is compiling the loops. This one waits for it."""


CompileStage = CompilingQuantiser | WaitingForCompiler
_FunctionTuple = tuple[Callable[..., Any], ...]
_compile_lock = threading.Lock()
_loaded_functions: dict[str, _FunctionTuple] = {}  # by module of the loops


def loops_of(name: str) -> CompiledLoops | None:
    """Return the compiled functions of format `name`, or None. Raises FormatError for an unknown format."""
    loops: CompiledLoops | None = quantiser_of(name).LOOPS
    return loops


def needs_compiling(loops: CompiledLoops) -> bool:
    """Return whether `loops` are neither loaded nor in the cache."""
    return loops.module not in _loaded_functions and _load(loops) is None


def compiling_cost(wanted: Iterable[CompiledLoops | None]) -> float:
    """Return the cost of compiling some loops. Loops that are in the cache, and None, cost nothing."""
    missing = {loops.module: loops for loops in wanted if loops is not None and needs_compiling(loops)}
    return sum(loops.cost for loops in missing.values())


def compile_loops(name: str, loops: CompiledLoops | None) -> Iterator[CompileStage]:
    """Compile and keep `loops` if needed. Yield each stage before it begins.

    Only one process compiles at a time; others wait. Call this before threads are started, since importing Numba
    changes the environment for a moment.

    Args:
        name: what the loops are for: the name of their format.
        loops: the loops; None for a format without any.
    """
    if loops is None or not needs_compiling(loops):
        return
    lock = CODE_STORE.lock()
    if not lock.acquire(wait=False):
        yield WaitingForCompiler()
        lock.acquire(wait=True)
    try:
        if needs_compiling(loops):
            yield CompilingQuantiser("", 0.0)
            from quant.quantisers.compiled.unit import warm_up

            warm_up()
            yield CompilingQuantiser(name, loops.cost)
            _compile(loops)
    finally:
        lock.release()


def compiled_functions(loops: CompiledLoops) -> _FunctionTuple:
    """Return the functions of `loops`, which take 64-bit integers. Compile them if needed.

    Only one process compiles at a time; others wait.

    Raises:
        ArgumentError: `QWCHAT_SIMD` or `QWCHAT_CACHE` has an invalid value.
    """
    if loops.module not in _loaded_functions:
        with _compile_lock:
            _loaded_functions[loops.module] = _load(loops) or _load_or_compile(loops)
    return _loaded_functions[loops.module]


def _load(loops: CompiledLoops) -> _FunctionTuple | None:
    addresses = linked_addresses(CODE_STORE, [SYMBOL_PREFIX + function for function in loops.arguments])
    if addresses is None:
        return None
    return tuple(callable_at(addresses[SYMBOL_PREFIX + function], count) for function, count in loops.arguments.items())


def _load_or_compile(loops: CompiledLoops) -> _FunctionTuple:
    with CODE_STORE.exclusive():
        functions = _load(loops)  # another process may have compiled them meanwhile
        if functions is None:
            _compile(loops)
            functions = _load(loops)
    assert functions is not None
    return functions


def _compile(loops: CompiledLoops) -> None:
    from quant.quantisers.compiled.unit import UNIT

    UNIT.compile_all(lambda: importlib.import_module(loops.module), {}, None)
