"""Functions of the processes that import everything once and fork for each program that the tests start."""

from __future__ import annotations

import atexit
import gc
import sys


def freeze() -> None:
    """Prepare this process for forking: a child's garbage collector ignores all current objects."""
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()


def finish() -> None:
    """Run the interpreter's exit steps in which a program may hang: threads, exit functions, buffers."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
