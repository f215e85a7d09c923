"""Entry point: run the command line under the guard.

Only the guard is imported before it is active, so that Ctrl-C works cleanly from the start.
"""

from __future__ import annotations

import gc
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
        arguments: command-line arguments; None takes them from the process.
        dependencies: functions of the engine; None takes the real ones.
    """
    argument_list = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argument_list  # Read here, because it applies to parser errors too.

    def run() -> int:
        gc.disable()  # Imports make no garbage; `run_app` enables it for the command.
        _replace_closed_streams()
        from qwchat.cli.app import run_app

        return run_app(argument_list, dependencies)

    sys.unraisablehook = _rearm_interrupt
    code = run_guarded(run, debug=debug)
    _ignore_interrupts()
    sys.exit(code)


def _replace_closed_streams() -> None:
    """Replace closed standard streams, whose numbers the next opened files would otherwise take.

    A closed standard output becomes a pipe without a reader, so that writing ends the program like any broken pipe. The
    other two become the null device.
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
                sys.stdout = open(number, "w", encoding="utf-8", closefd=False)  # noqa: SIM115  # Until the program ends.


def _rearm_interrupt(unraisable: Any) -> None:
    """Raise a Ctrl-C again that arrived in a finaliser, where it cannot be raised.

    It is raised a moment later, because this hook could not raise it either.
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
    """Ignore Ctrl-C from now on: the exit code is decided."""
    import signal

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # Not the main thread, which alone gets Ctrl-C.
        return
