"""Interpreter of the PTX that the project's kernels are compiled to, for tests without a GPU.

`Memory().place(array)` returns an address, `Kernel(ptx_text, name).run(memory, grid, threads, *arguments)` runs a
kernel, and `memory.back(address, dtype, shape)` returns what it wrote.
"""

from tests.cuda.interpreter.kernel import Kernel
from tests.cuda.interpreter.memory import Memory
from tests.cuda.interpreter.races import RaceError

__all__ = ["Kernel", "Memory", "RaceError"]
