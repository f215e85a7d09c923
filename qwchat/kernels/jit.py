"""The one place with Numba's options, and with what is used of its private interface.

Three kinds of compiled code: a :func:`kernel` is an ordinary jitted function, called from other kernels and from
tests; an :func:`inlined` one dissolves into its callers; a :func:`standalone` one is compiled apart, once, to an object
that :mod:`qwchat.kernels.objects` keeps and loads, so that a start needs no Numba.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba.core import compiler, registry
from numba.core.compiler_lock import global_compiler_lock

from quant.native.level import current_level
from qwchat.kernels import objects

# Feature lists that keep LLVM below 64-byte registers, for the 32-byte levels on a larger machine.
_HASWELL = "+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt,+movbe"
PROCESSORS = {"avxvnni": ("haswell", f"{_HASWELL},+avxvnni"), "avx2": ("haswell", _HASWELL)}


def _configure() -> None:
    numba.config.CACHE_DIR = str(objects.writable_folder())
    if current_level() in PROCESSORS:
        numba.config.CPU_NAME, numba.config.CPU_FEATURES = PROCESSORS[current_level()]


_configure()

# Numba's own cache is for kernels that are called one by one, in tests and probes; a start that compiles everything
# keeps the finished objects alone.
_keep_kernels = True


def kernel(function: Callable[..., Any]) -> Any:
    """Compiles ``function`` without the GIL, bounds checks or exceptions, and keeps the machine code on disk.

    ``fastmath`` stays off: it would make ``isnan`` false and let the order of sums vary between levels.
    """
    return _jitted(function, cache=True) if _keep_kernels else _Part(function)


def inlined(function: Callable[..., Any]) -> Any:
    """Like :func:`kernel`, for small pieces that LLVM shall inline into the kernel that calls them."""
    return _Part(function, forceinline=True)


def _jitted(function: Callable[..., Any], **options: bool) -> Any:
    return numba.njit(nogil=True, boundscheck=False, error_model="numpy", no_cfunc_wrapper=True, **options)(function)


class _Part:
    """A function that compiled code calls: without the wrapper for Python, which is a sixth of the compiler's work.

    Python may call it all the same, and has it compiled once more for that.
    """

    def __init__(self, function: Callable[..., Any], **options: bool) -> None:
        self.py_func, self._options = function, options
        self._for_python: Any = None
        self._part = _jitted(function, no_cpython_wrapper=True, **options)
        # What Numba takes a global of this kind for; it does not keep the function alive.
        self._numba_type_ = numba.types.Dispatcher(self._part)

    def __call__(self, *arguments: Any) -> Any:
        if self._for_python is None:
            self._for_python = _jitted(self.py_func, **self._options)
        return self._for_python(*arguments)


_standalone: dict[str, tuple[Callable[..., Any], Any]] = {}
_kept: dict[str, bytes] = objects.load()
_libraries: dict[str, Any] = {}  # what this process has compiled, for the tests to read
_callbacks: list[Any] = []  # keeps their code alive
_progress: objects.Progress | None = None


def standalone(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compiles a function apart from its callers, who reach it by symbol: ``qwchat_`` and its name.

    Numba links a jitted callee into each caller's library and optimises it there again; the matrix kernels, with all
    their formats, would be compiled some ten times over.  The function must not raise.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        symbol = f"qwchat_{function.__name__}"
        _standalone[symbol] = (function, signature)
        _load(symbol)
        return numba.types.ExternalFunction(symbol, signature)

    return decorate


def entry(kernel_function: Any, signature: Any) -> None:
    """Makes a kernel a standalone function as well, for Python to call by symbol."""
    standalone(signature)(kernel_function.py_func)


def stages() -> int:
    """How many standalone functions there are, as the source says: they are met one by one."""
    pattern = re.compile(r"^(?:@standalone|entry)\(", re.MULTILINE)
    return sum(len(pattern.findall(source.read_text("utf-8"))) for source in objects.source_files())


def compile_all(load_modules: Callable[[], object], progress: objects.Progress | None) -> dict[str, int]:
    """The addresses of all standalone functions in the modules that ``load_modules`` imports; compiles and keeps what
    the cache does not hold."""
    global _keep_kernels, _progress
    before = _keep_kernels
    _keep_kernels, _progress = False, progress
    try:
        load_modules()
    finally:
        _keep_kernels, _progress = before, None
    if _kept:
        objects.save(_kept)
    return dict(objects.linker().addresses)


def _load(symbol: str) -> None:
    """Makes a standalone function known to LLVM, compiled anew unless the cache has it."""
    here = objects.linker()
    code = _kept.get(symbol)
    if symbol not in here.addresses and (code is None or not _linked(symbol, code)):
        if _progress is not None:
            _progress(len(_standalone) - 1, stages(), symbol.removeprefix("qwchat_").replace("_", " "))
        _compile(symbol)
        if _progress is None and symbol in _kept:
            objects.save(_kept)
    llvm.add_symbol(symbol, here.addresses[symbol])


def _linked(symbol: str, code: bytes) -> bool:
    try:
        objects.linker().add(symbol, code)
    except RuntimeError:
        return False
    return True


def _compile(symbol: str) -> None:
    try:
        code = _object_code(symbol)
        objects.linker().add(symbol, code)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        # Another Numba, or another kind of object file: run the code from where Numba has put it, and keep nothing.
        function, signature = _standalone[symbol]
        callback = numba.cfunc(signature, boundscheck=False, error_model="numpy")(function)
        _callbacks.append(callback)
        _kept.pop(symbol, None)
        objects.linker().addresses[symbol] = callback.address
    else:
        _kept[symbol] = code


def _library(symbol: str) -> Any:
    """A standalone function as a Numba library that exports ``symbol`` with C's calling convention.

    Numba's own C wrapper would refer to the interpreter, to report exceptions; here there are none.
    """
    function, signature = _standalone[symbol]
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
    returns = ir.VoidType() if described.restype == numba.types.none else context.get_value_type(described.restype)
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


@global_compiler_lock
def _object_code(symbol: str) -> bytes:
    _libraries[symbol] = _library(symbol)
    _, _, (code, _) = _libraries[symbol].serialize_using_object_code()
    return bytes(code)


@global_compiler_lock
def machine_code(symbol: str) -> str:
    """The assembly of a standalone function, compiled for the purpose where it came from the cache."""
    if symbol not in _libraries:
        _object_code(symbol)
    text: str = _libraries[symbol].get_asm_str()
    return text
