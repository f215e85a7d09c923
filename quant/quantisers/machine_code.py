"""The machine code of the quantisers: from the user's cache without Numba, compiled where it has none that fits."""

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
    """The compiled functions of a quantiser.

    Attributes:
        module: dotted name of the module that compiles them when it is imported.
        arguments: each function's name and how many 64-bit integers it takes.
        cost: how long all take to compile, in seconds of an AMD EPYC; only ratios matter.
    """

    module: str
    arguments: Mapping[str, int]
    cost: float


@dataclass(frozen=True)
class CompilingQuantiser:
    """The loops of a format are compiled now, once; `cost` is relative to that of other code.

    Without a format and a cost the compiler itself is loaded.
    """

    format: str
    cost: float


@dataclass(frozen=True)
class WaitingForCompiler:
    """Another process compiles these loops now, and this one waits for it."""


CompileStage = CompilingQuantiser | WaitingForCompiler
_FunctionTuple = tuple[Callable[..., Any], ...]
_compile_lock = threading.Lock()
_loaded_functions: dict[str, _FunctionTuple] = {}  # by the module of the loops


def loops_of(name: str) -> CompiledLoops | None:
    """Return the compiled functions that packing in format `name` needs. Raises FormatError for an unknown format."""
    loops: CompiledLoops | None = quantiser_of(name).LOOPS
    return loops


def needs_compiling(name: str) -> bool:
    """Return whether format `name` has compiled loops that are neither in this process nor in the cache."""
    loops = loops_of(name)
    return loops is not None and loops.module not in _loaded_functions and _load(loops) is None


def compiling_cost(names: Iterable[str]) -> float:
    """Return what compiling the loops of formats `names` costs, unless they are compiled."""
    wanted = {loops.module: loops for name in names if needs_compiling(name) and (loops := loops_of(name))}
    return sum(loops.cost for loops in wanted.values())


def compile_for(name: str) -> Iterator[CompileStage]:
    """Compile and keep the loops of format `name` where that is needed; tell of each stage before it.

    One process compiles, the others wait for it. Call this before threads are started: importing Numba changes the
    environment for a moment.
    """
    loops = loops_of(name)
    if loops is None or not needs_compiling(name):
        return
    lock = CODE_STORE.lock()
    if not lock.acquire(wait=False):
        yield WaitingForCompiler()
        lock.acquire(wait=True)
    try:
        if needs_compiling(name):
            yield CompilingQuantiser("", 0.0)
            from quant.quantisers.compiled.unit import warm_up

            warm_up()
            yield CompilingQuantiser(name, compiling_cost([name]))
            _compile(loops)
    finally:
        lock.release()


def compiled_functions(loops: CompiledLoops) -> _FunctionTuple:
    """Return `loops` as functions that take 64-bit integers. One process compiles, others wait for it.

    Raises:
        ArgumentError: `QWCHAT_SIMD` or `QWCHAT_CACHE` has a value that cannot be used.
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
        functions = _load(loops)  # Another process may have compiled meanwhile.
        if functions is None:
            _compile(loops)
            functions = _load(loops)
    assert functions is not None
    return functions


def _compile(loops: CompiledLoops) -> None:
    from quant.quantisers.compiled.unit import UNIT

    UNIT.compile_all(lambda: importlib.import_module(loops.module), {}, None)
