"""What the processes share that have everything imported and fork for each program that the tests start."""

from __future__ import annotations

import atexit
import gc
import sys


def freeze() -> None:
    """Prepare this process for forking: the garbage collector of a child looks at nothing of what is held now."""
    sys.dont_write_bytecode = True
    gc.collect()
    gc.freeze()


def finish() -> None:
    """Do what the interpreter does at its end and a program may hang in: threads, exit functions, buffers."""
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            stream.flush()
