"""Interpreter of the PTX that the project's kernels are compiled to, for tests without a GPU.

`Memory().place(array)` returns an address, `Kernel(ptx_text, name).run(memory, grid, threads, *arguments)` runs a
kernel, and `memory.back(address, dtype, shape)` returns what it wrote.
"""

import os

from tests.cuda.interpreter.races import RaceError

if os.environ.get("QWCHAT_TEST_GPU"):  # Run the same tests on a real GPU.
    from tests.cuda.on_gpu import GpuArrays as Memory
    from tests.cuda.on_gpu import GpuKernel as Kernel
else:
    from tests.cuda.interpreter.kernel import Kernel
    from tests.cuda.interpreter.memory import Memory

__all__ = ["Kernel", "Memory", "RaceError"]
