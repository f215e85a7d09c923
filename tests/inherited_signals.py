"""What a process inherits from the process that starts it, and tests must not: signals that are ignored or blocked."""

from __future__ import annotations

import signal

# Python ignores SIGPIPE itself, and subprocess gives it back to children; SIGINT raises KeyboardInterrupt here.
SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)


def restore_signals() -> None:
    """Set the default action of the signals that `nohup`, background jobs and some CI systems ignore or block."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, signal.SIGINT, signal.SIGPIPE, signal.SIGWINCH})
