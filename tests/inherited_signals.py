"""Ignored and blocked signals, which a process inherits and tests must not."""

from __future__ import annotations

import signal

# Python ignores SIGPIPE, and subprocess restores it in children; SIGINT raises KeyboardInterrupt.
SIGNALS = (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT, signal.SIGCHLD)


def restore_signals() -> None:
    """Restore the default action of signals that `nohup`, background jobs and some CI systems change."""
    for number in SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*SIGNALS, signal.SIGINT, signal.SIGPIPE, signal.SIGWINCH})
