"""Run the command line on hostile files of every kind: `python -m tests.fuzz`.

    python -m tests.fuzz --cases 10000                     10,000 cases of each surface
    python -m tests.fuzz --minutes 30                      as many cases as run in 30 minutes
    python -m tests.fuzz --surface templates --case 17     one case, with its whole output
    python -m tests.fuzz --surface corpus --case NAME      one of the known attacks

The exit code is 1 if anything went wrong. Each finding names the command that repeats it.
"""

from __future__ import annotations

import os
import sys

_KEPT = ("QWCHAT_SIMD", "QWCHAT_CACHE")


def _run() -> int:
    # A process that forks must have one thread, so this precedes the import of NumPy and the tokenizers.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    for name in [name for name in os.environ if name.startswith("QWCHAT_") and name not in _KEPT]:
        del os.environ[name]
    from tests.fuzz.command_line import main

    return main()


if __name__ == "__main__":
    sys.exit(_run())
