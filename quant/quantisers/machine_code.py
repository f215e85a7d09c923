"""The machine code of the quantisers: from the user's cache without Numba, compiled where it has none that fits."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quant.native.linker import callable_at, linked
from quant.quantisers.code_store import PREFIX, QUANTISERS
from quant.quantisers.registry import quantiser_of


@dataclass(frozen=True)
class Loops:
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
class Compiling:
    """The loops of a format are compiled now, once; `cost` is relative to that of other code.

    Without a format and a cost the compiler itself is loaded.
    """

    format: str
    cost: float


@dataclass(frozen=True)
class Waiting:
    """Another process compiles these loops now, and this one waits for it."""


Stage = Compiling | Waiting
_Functions = tuple[Callable[..., Any], ...]
_one_at_a_time = threading.Lock()
_ready: dict[str, _Functions] = {}  # by the module of the loops


def loops_of(name: str) -> Loops | None:
    """Return the compiled functions that packing in format `name` needs. Raises FormatError for an unknown format."""
    loops: Loops | None = quantiser_of(name).LOOPS
    return loops


def needs_compiling(name: str) -> bool:
    """Return whether format `name` has compiled loops that are neither in this process nor in the cache."""
    loops = loops_of(name)
    return loops is not None and loops.module not in _ready and _loaded(loops) is None


def compiling_cost(names: Iterable[str]) -> float:
    """Return what compiling the loops of formats `names` costs, unless they are compiled."""
    wanted = {loops.module: loops for name in names if needs_compiling(name) and (loops := loops_of(name))}
    return sum(loops.cost for loops in wanted.values())


def compile_for(name: str) -> Iterator[Stage]:
    """Compile and keep the loops of format `name` where that is needed; tell of each stage before it.

    One process compiles, the others wait for it. Call this before threads are started: importing Numba changes the
    environment for a moment.
    """
    loops = loops_of(name)
    if loops is None or not needs_compiling(name):
        return
    lock = QUANTISERS.lock()
    if not lock.acquire(wait=False):
        yield Waiting()
        lock.acquire(wait=True)
    try:
        if needs_compiling(name):
            yield Compiling("", 0.0)
            from quant.quantisers.compiled.unit import warm_up

            warm_up()
            yield Compiling(name, compiling_cost([name]))
            _compile(loops)
    finally:
        lock.release()


def compiled_functions(loops: Loops) -> _Functions:
    """Return `loops` as functions that take 64-bit integers. One process compiles, others wait for it.

    Raises:
        UsageError: `QWCHAT_SIMD` or `QWCHAT_CACHE` has a value that cannot be used.
    """
    if loops.module not in _ready:
        with _one_at_a_time:
            _ready[loops.module] = _loaded(loops) or _compiled(loops)
    return _ready[loops.module]


def _loaded(loops: Loops) -> _Functions | None:
    addresses = linked(QUANTISERS, [PREFIX + function for function in loops.arguments])
    if addresses is None:
        return None
    return tuple(callable_at(addresses[PREFIX + function], count) for function, count in loops.arguments.items())


def _compiled(loops: Loops) -> _Functions:
    with QUANTISERS.exclusive():
        functions = _loaded(loops)  # Another process may have compiled meanwhile.
        if functions is None:
            _compile(loops)
            functions = _loaded(loops)
    assert functions is not None
    return functions


def _compile(loops: Loops) -> None:
    from quant.quantisers.compiled.unit import UNIT

    UNIT.compile_all(lambda: importlib.import_module(loops.module), {}, None)
