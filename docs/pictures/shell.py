"""A prompt that runs commands, without the job control of a shell, which would notice that a program is slowed down."""

from __future__ import annotations

import shlex
import signal
import subprocess


def main() -> None:
    """Run one command after the other until the input ends."""
    signal.signal(signal.SIGINT, lambda number, frame: None)  # Unlike SIG_IGN, it is not inherited.
    while True:
        try:
            words = shlex.split(input("$ "))
        except EOFError:
            return
        if words:
            subprocess.run(words, check=False)


if __name__ == "__main__":
    main()
