"""The entry point: runs the command line under the guard.

Nothing but the guard is imported before it stands, so that Ctrl-C leaves quietly from the first moment on.
"""

from __future__ import annotations

import sys

from qwchat.cli.guard import run_guarded

_REARM_DELAY_SECONDS = 0.01
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from qwchat.cli.dependencies import Dependencies


def main(arguments: Sequence[str] | None = None, dependencies: Dependencies | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: what follows the program's name; None takes it from the process.
        dependencies: what the commands need from outside; None takes the real engine.
    """
    argument_list = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argument_list  # Read by hand: it must hold for errors of the parser too.

    def run() -> int:
        _replace_closed_streams()
        from qwchat.cli.app import run_app

        return run_app(argument_list, dependencies)

    sys.unraisablehook = _rearm_interrupt
    code = run_guarded(run, debug=debug)
    _ignore_interrupts()
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Make a standard stream that is closed behave as one should whose other end is gone.

    Otherwise the next file that is opened would take its number. A closed standard output becomes a pipe without a
    reader: whatever is written to it ends the program as any broken pipe does. The other two lead nowhere.
    """
    import os

    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # Takes the lowest free number, which is this one.
            if number == 1:
                reader, writer = os.pipe()
                os.close(reader)
                os.dup2(writer, number)
                os.close(writer)
                sys.stdout = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # For all of the run.


def _rearm_interrupt(unraisable: Any) -> None:
    """A Ctrl-C that falls into a finaliser cannot be raised there: raise it where the program goes on.

    A moment later, since raised at once it would fall into this hook, and be lost again.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    import _thread
    import threading

    timer = threading.Timer(_REARM_DELAY_SECONDS, _thread.interrupt_main)
    timer.daemon = True
    timer.start()


def _ignore_interrupts() -> None:
    """The exit code stands: a late Ctrl-C changes nothing and prints nothing."""
    import signal

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # Not in the main thread, where Ctrl-C does not arrive anyway.
        return
