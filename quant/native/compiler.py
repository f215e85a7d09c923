"""Compile functions with Numba. Numba's options and the private parts of its interface are used only here.

There are three kinds of compiled code. A `subroutine` is compiled together with each function that calls it. An
`inlined` function is inlined by LLVM into its callers. A function of a `CompilationUnit` is compiled once, separately,
to an object that the unit's store keeps and that is loaded without Numba. Numba's own cache is not used, because it
unpickles the files that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quant.native import simd_level
from quant.native.backend import cfunc, compiler, config, global_compiler_lock, ir, njit, registry, types
from quant.native.linker import linker
from quant.native.llvm import binding as llvm
from quant.native.object_store import CompileProgress, ObjectStore

# Features that keep LLVM from using 64-byte registers, for the 32-byte levels on larger processors.
_HASWELL = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+movbe"
PROCESSORS = {"avxvnni": ("haswell", f"{_HASWELL},+avxvnni"), "avx2": ("haswell", _HASWELL)}

if simd_level.current_level() in PROCESSORS:
    config.CPU_NAME, config.CPU_FEATURES = PROCESSORS[simd_level.current_level()]


def warm_up() -> None:
    """Compile a trivial function, so that the start-up time of Numba is not counted for the functions that follow."""
    jitted(lambda x: x)(1)


def subroutine(function: Callable[..., Any]) -> Any:
    """Compile `function` together with the functions that call it, without the GIL, bounds checks or exceptions.

    `fastmath` stays off: with it, `isnan` would always be false, and the order of sums would vary between machines.
    """
    return _Subroutine(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` like `subroutine`, but let LLVM inline it into its callers."""
    return _Subroutine(function, forceinline=True)


def jitted(function: Callable[..., Any], **options: bool) -> Any:
    """Return the Numba dispatcher of `function` with the options that all compiled code has."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", no_cfunc_wrapper=True, **options)(function)


def for_python(function: Callable[..., Any], **options: bool) -> Any:
    """Return a compiled function for calls from Python. Tests replace this by a version that keeps its results."""
    return jitted(function, **options)


class _Subroutine:
    """Function for calls from compiled code. It has no Python wrapper, which saves a sixth of the compile time.

    The first call from Python compiles it a second time, with the wrapper.
    """

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        self.py_func, self._options = function, options
        self._for_python: Any = None
        self._dispatcher = jitted(function, no_cpython_wrapper=True, **options)
        # Numba treats a global with this attribute as a dispatcher. It does not keep the function alive.
        self._numba_type_ = types.Dispatcher(self._dispatcher)

    def __call__(self, *arguments: Any) -> Any:
        if self._for_python is None:
            self._for_python = for_python(self.py_func, **self._options)
        return self._for_python(*arguments)


class CompilationUnit:
    """Functions that are compiled separately and kept in one store.

    Args:
        store: store of their object code.
        prefix: prefix of their symbols. The name of the function follows.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._functions: dict[str, tuple[Callable[..., Any], Any]] = {}
        self._objects = store.load()
        self._libraries: dict[str, Any] = {}  # compiled by this process; tests read it
        self._callbacks: list[Any] = []  # a reference keeps their code alive
        self._report: Callable[[str], None] | None = None

    def standalone(self, signature: Any) -> Callable[[Callable[..., Any]], Any]:
        """Return a decorator that compiles a function separately. Compiled callers refer to it by symbol.

        Numba would link a jitted callee into the library of each caller and optimise it again there: the matrix
        kernels, with all formats, would be compiled about ten times. The function must not raise.

        Args:
            signature: Numba signature of 64-bit integers.
        """

        def decorate(function: Callable[..., Any]) -> Any:
            symbol = self._prefix + function.__name__
            self._functions[symbol] = (function, signature)
            self._link_or_compile(symbol)
            return types.ExternalFunction(symbol, signature)

        return decorate

    def compile_all(
        self, load_modules: Callable[[], object], costs: Mapping[str, float], progress: CompileProgress | None
    ) -> dict[str, int]:
        """Compile and keep the functions of some modules, except those that the store already has.

        Args:
            load_modules: imports the modules that define the functions.
            costs: relative compile time of each function, by name.
            progress: called with name and cost before each function is compiled.

        Returns:
            Address of every function loaded so far, by symbol.
        """

        def report(symbol: str) -> None:
            name = symbol.removeprefix(self._prefix)
            if progress is not None:
                progress(name, costs.get(name, 0.0))

        self._report = report
        try:
            load_modules()
        finally:
            self._report = None
        if self._objects:
            self._store.save(self._objects)
        return dict(linker().addresses)

    @global_compiler_lock
    def machine_code(self, symbol: str) -> str:
        """Return the assembly of a function. Compile it again if it was loaded from the store."""
        if symbol not in self._libraries:
            self.object_code(symbol)
        text: str = self._libraries[symbol].get_asm_str()
        return text

    @global_compiler_lock
    def object_code(self, symbol: str) -> bytes:
        """Compile a function and return its object code."""
        self._libraries[symbol] = _build_library(symbol, *self._functions[symbol])
        _, _, (code, _) = self._libraries[symbol].serialize_using_object_code()
        return bytes(code)

    def _link_or_compile(self, symbol: str) -> None:
        """Make a function known to LLVM. Compile it if the store does not have it."""
        current = linker()
        code = self._objects.get(symbol)
        if symbol not in current.addresses and (code is None or not _is_linked(symbol, code)):
            if self._report is not None:
                self._report(symbol)
            self._compile(symbol)
            if self._report is None and symbol in self._objects:
                self._store.save(self._objects)
        llvm.add_symbol(symbol, current.addresses[symbol])

    def _compile(self, symbol: str) -> None:
        try:
            code = self.object_code(symbol)
            linker().add(symbol, code)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            # Another version of Numba, or another object format: use Numba's own callback and keep nothing.
            function, signature = self._functions[symbol]
            callback = cfunc(signature, boundscheck=False, error_model="numpy")(function)
            self._callbacks.append(callback)
            self._objects.pop(symbol, None)
            linker().addresses[symbol] = callback.address
        else:
            self._objects[symbol] = code


def _is_linked(symbol: str, code: bytes) -> bool:
    try:
        linker().add(symbol, code)
    except RuntimeError:
        return False
    return True


def _build_library(symbol: str, function: Callable[..., Any], signature: Any) -> Any:
    """Return a function as a Numba library that exports `symbol` with the C calling convention.

    Numba's own C wrapper reports exceptions and so refers to the interpreter. These functions do not raise.
    """
    flags = compiler.Flags()
    flags.no_cpython_wrapper = flags.no_cfunc_wrapper = flags.no_compile = True
    flags.error_model, flags.boundscheck = "numpy", False
    target = registry.cpu_target
    result = compiler.compile_extra(
        target.typing_context, target.target_context, function, signature.args, signature.return_type, flags, {}
    )
    context, described = target.target_context, result.fndesc
    module = context.create_module(f"{symbol}_wrapper")
    callee = ir.Function(
        module, context.call_conv.get_function_type(described.restype, described.argtypes), described.llvm_func_name
    )
    returns = ir.VoidType() if described.restype == types.none else context.get_value_type(described.restype)
    wrapper = ir.Function(
        module, ir.FunctionType(returns, [context.get_value_type(kind) for kind in described.argtypes]), symbol
    )
    builder = ir.IRBuilder(wrapper.append_basic_block())
    _, value = context.call_conv.call_function(builder, callee, described.restype, described.argtypes, wrapper.args)
    if isinstance(returns, ir.VoidType):
        builder.ret_void()
    else:
        builder.ret(value)
    result.library.add_ir_module(module)
    return result.library
