"""The one place with Numba's options, and with the parts of its private interface that are used.

Three kinds of compiled code: a :func:`subroutine` is compiled into the functions that call it, an :func:`inlined` one
dissolves into them; a function of a :class:`CompilationUnit` is compiled apart, once, to an object that the unit's
store keeps and that is loaded without Numba. Numba's own cache is not used: it unpickles the files that it finds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from quant.native import simd_level
from quant.native.backend import cfunc, compiler, config, global_compiler_lock, ir, njit, registry, types
from quant.native.linker import linker
from quant.native.llvm import binding as llvm
from quant.native.object_store import CompileProgress, ObjectStore

# Feature lists that keep LLVM below 64-byte registers, for the 32-byte levels on a larger machine.
_HASWELL = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+movbe"
PROCESSORS = {"avxvnni": ("haswell", f"{_HASWELL},+avxvnni"), "avx2": ("haswell", _HASWELL)}

if simd_level.current_level() in PROCESSORS:
    config.CPU_NAME, config.CPU_FEATURES = PROCESSORS[simd_level.current_level()]


def warm_up() -> None:
    """Compile a first function, which makes Numba set itself up: the time is not that of the functions that follow."""
    jitted(lambda x: x)(1)


def subroutine(function: Callable[..., Any]) -> Any:
    """Compile `function`, with the functions that call it, without the GIL, bounds checks or exceptions.

    `fastmath` stays off: it would make `isnan` false and let the order of sums vary between machines.
    """
    return _Subroutine(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Compile `function` as :func:`subroutine` does, for LLVM to inline into its callers."""
    return _Subroutine(function, forceinline=True)


def jitted(function: Callable[..., Any], **options: bool) -> Any:
    """Return `function` as Numba's dispatcher with the options of all compiled code."""
    return njit(nogil=True, boundscheck=False, error_model="numpy", no_cfunc_wrapper=True, **options)(function)


def for_python(function: Callable[..., Any], **options: bool) -> Any:
    """Return a part of compiled code for Python to call. Tests replace this by one that keeps what it compiles."""
    return jitted(function, **options)


class _Subroutine:
    """A function that compiled code calls: without the wrapper for Python, which is a sixth of the compiler's work.

    A call from Python compiles it once more.
    """

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        self.py_func, self._options = function, options
        self._for_python: Any = None
        self._dispatcher = jitted(function, no_cpython_wrapper=True, **options)
        # Numba takes a global with this attribute for a dispatcher; it does not keep the function alive.
        self._numba_type_ = types.Dispatcher(self._dispatcher)

    def __call__(self, *arguments: Any) -> Any:
        if self._for_python is None:
            self._for_python = for_python(self.py_func, **self._options)
        return self._for_python(*arguments)


class CompilationUnit:
    """Functions that are compiled apart and kept together.

    Args:
        store: where their objects are kept.
        prefix: what a function's symbol begins with; the function's name follows.
    """

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self._store, self._prefix = store, prefix
        self._functions: dict[str, tuple[Callable[..., Any], Any]] = {}
        self._objects = store.load()
        self._libraries: dict[str, Any] = {}  # what this process has compiled, for the tests to read
        self._callbacks: list[Any] = []  # keeps their code alive
        self._report: Callable[[str], None] | None = None

    def standalone(self, signature: Any) -> Callable[[Callable[..., Any]], Any]:
        """Compile a function apart from its callers, who reach it by symbol.

        Numba links a jitted callee into each caller's library and optimises it there again; the matrix kernels, with
        all their formats, would be compiled some ten times over. The function must not raise.

        Args:
            signature: Numba's, of 64-bit integers.
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
        """Compile and keep the functions in the modules that `load_modules` imports, unless the store holds them.

        Args:
            load_modules: imports them.
            costs: how long each function takes to compile, by name, in any unit.
            progress: told of each function before it is compiled, with its cost.

        Returns:
            The addresses of all functions loaded so far, by symbol.
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
        """Return the assembly of a function, compiled for the purpose where it came from the store."""
        if symbol not in self._libraries:
            self.object_code(symbol)
        text: str = self._libraries[symbol].get_asm_str()
        return text

    @global_compiler_lock
    def object_code(self, symbol: str) -> bytes:
        """Compile a function and return its object."""
        self._libraries[symbol] = _build_library(symbol, *self._functions[symbol])
        _, _, (code, _) = self._libraries[symbol].serialize_using_object_code()
        return bytes(code)

    def _link_or_compile(self, symbol: str) -> None:
        """Make a function known to LLVM, compiled unless the store has it."""
        here = linker()
        code = self._objects.get(symbol)
        if symbol not in here.addresses and (code is None or not _is_linked(symbol, code)):
            if self._report is not None:
                self._report(symbol)
            self._compile(symbol)
            if self._report is None and symbol in self._objects:
                self._store.save(self._objects)
        llvm.add_symbol(symbol, here.addresses[symbol])

    def _compile(self, symbol: str) -> None:
        try:
            code = self.object_code(symbol)
            linker().add(symbol, code)
        except (AttributeError, TypeError, ValueError, RuntimeError):
            # Another Numba, or another kind of object file: run the code from where Numba has put it, keep nothing.
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
    """Return a function as a Numba library that exports `symbol` with C's calling convention.

    Numba's own C wrapper would refer to the interpreter, to report exceptions; here there are none.
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
