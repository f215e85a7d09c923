"""`python -m tests.fuzz`: hostile files of every kind against the command line.

    python -m tests.fuzz --cases 10000                     so many cases of each surface
    python -m tests.fuzz --minutes 30                      as many as there is time for
    python -m tests.fuzz --surface templates --case 17     one case, and all that it prints
    python -m tests.fuzz --surface corpus --case NAME      one of the attacks that are always run

Exit code 1: something was wrong. Each finding names the command that repeats it.
"""

from __future__ import annotations

import os
import sys

_KEPT = ("QWCHAT_SIMD", "QWCHAT_CACHE")


def _run() -> int:
    # Before NumPy and the tokenizers are imported: a process that forks must have one thread.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    for name in [name for name in os.environ if name.startswith("QWCHAT_") and name not in _KEPT]:
        del os.environ[name]
    from tests.fuzz.command_line import main

    return main()


if __name__ == "__main__":
    sys.exit(_run())
