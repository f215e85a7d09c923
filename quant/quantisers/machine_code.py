"""The machine code of the quantisers: from the user's cache without Numba, compiled where it has none that fits."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from quant.native.linker import callable_at, linked
from quant.native.store import ObjectStore

PREFIX = "quant_"
QUANTISERS = ObjectStore(
    "quantisers-", ("quant.quantisers", "quant.quantisers.compiled", "quant.formats", "quant.native")
)
# The module of `quant.quantisers.compiled` for a format, and its functions with the number of their arguments.
_Q4 = ("q4", {"q4_search": 6, "q4_encode": 10})
_Q8 = ("q8", {"q8_encode": 8})
_LIN = ("linear", {"lin_search": 12, "lin_encode": 10})
_FORMATS: dict[str, tuple[str, dict[str, int]]] = {"q4": _Q4, "q8": _Q8, "lin4": _LIN, "lin8": _LIN}

# How long the loops of a module take to compile, in seconds of an AMD EPYC; only ratios matter.
_COSTS = {"q4": 1.45, "q8": 0.5, "linear": 0.65}


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
_ready: dict[str, _Functions] = {}


def needs_compiling(name: str) -> bool:
    """Return whether format `name` has compiled loops that are neither in this process nor in the cache."""
    return name in _FORMATS and name not in _ready and _loaded(name) is None


def compiling_cost(names: Iterable[str]) -> float:
    """Return what compiling the loops of formats `names` costs, unless they are compiled."""
    modules = {_FORMATS[name][0] for name in names if needs_compiling(name)}
    return sum(_COSTS[module] for module in modules)


def compile_for(name: str) -> Iterator[Stage]:
    """Compile and keep the loops of format `name` where that is needed; tell of each stage before it.

    One process compiles, the others wait for it. Call this before threads are started: importing Numba changes the
    environment for a moment.
    """
    if not needs_compiling(name):
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
            _compile(name)
    finally:
        lock.release()


def compiled_functions(name: str) -> _Functions:
    """Return the loops of format `name`; they take 64-bit integers. One process compiles, others wait for it.

    Raises:
        UsageError: `QWCHAT_SIMD` or `QWCHAT_CACHE` has a value that cannot be used.
    """
    if name not in _ready:
        with _one_at_a_time:
            _ready[name] = _loaded(name) or _compiled(name)
    return _ready[name]


def _loaded(name: str) -> _Functions | None:
    _, arguments = _FORMATS[name]
    addresses = linked(QUANTISERS, [PREFIX + function for function in arguments])
    if addresses is None:
        return None
    return tuple(callable_at(addresses[PREFIX + function], count) for function, count in arguments.items())


def _compiled(name: str) -> _Functions:
    with QUANTISERS.exclusive():
        functions = _loaded(name)  # Another process may have compiled meanwhile.
        if functions is None:
            _compile(name)
            functions = _loaded(name)
    assert functions is not None
    return functions


def _compile(name: str) -> None:
    from quant.quantisers.compiled.unit import UNIT

    module = f"quant.quantisers.compiled.{_FORMATS[name][0]}"
    UNIT.compile_all(lambda: importlib.import_module(module), {}, None)
