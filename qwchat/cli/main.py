"""The entry point: runs the command line and turns whatever happens into an exit code.

Nothing is imported before the guard stands, so that Ctrl-C leaves quietly from the first moment on.
"""

from __future__ import annotations

import sys

_MOMENT_SECONDS = 0.01
_OUT_OF_MEMORY = "out of memory: close other programs, or use a smaller model or a shorter context (--ctx)"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from qwchat.cli.services import Services


def main(arguments: Sequence[str] | None = None, services: Services | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        arguments: what follows the program's name; None takes it from the process.
        services: what the commands need from outside; None takes the real engine.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words  # Read by hand: it must hold for errors of the parser too.

    def run() -> int:
        _replace_closed_streams()
        from qwchat.cli.app import run_app

        return run_app(words, services)

    sys.unraisablehook = _rearm_interrupt
    code = guarded(run, debug=debug)
    _ignore_interrupts()
    sys.exit(code)


def guarded(run: Callable[[], int], *, debug: bool) -> int:
    """The exit code of ``run``; a failure is one line on standard error, with a traceback only where ``debug``."""
    try:
        code = run()
        _flush_output()
        return code
    except KeyboardInterrupt:
        _tell("interrupted")
        return 130
    except BrokenPipeError as error:
        _drop_output()
        return _code(error)
    except MemoryError as error:
        _tell(f"error: {_OUT_OF_MEMORY}")
        return _code(error)
    except Exception as error:  # noqa: BLE001  # The last line of defence: everything becomes one line and a code.
        if debug:
            import traceback

            traceback.print_exc()
        _tell(f"error: {_explanation(error)}")
        return _code(error)


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


def _code(error: BaseException) -> int:
    from qwchat.cli.exit_codes import exit_code_of

    return int(exit_code_of(error))


def _explanation(error: Exception) -> str:
    from qwchat.cli.exit_codes import is_expected, lacks_memory

    if is_expected(error):
        from qwchat.chat.advice import explained

        return explained(error, chat=False)
    if lacks_memory(error):
        return _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"a bug: {type(error).__name__}: {error} (--debug shows the traceback)"


def _tell(text: str) -> None:
    from qwchat.characters import harmless

    try:
        sys.stderr.write(f"qwchat: {harmless(' '.join(text.split()))}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # Nobody listens: closed, broken or absent standard error.
        return


def _flush_output() -> None:
    """Write what is still buffered; drop it where the terminal was closed meanwhile, which changes no exit code."""
    import errno
    import os
    import stat

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EIO or not stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode):
            raise
        _drop_output()


def _drop_output() -> None:
    """Let what is still buffered for a closed pipe or terminal vanish, so that Python does not complain at its end."""
    import os

    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            try:
                os.dup2(nowhere, stream.fileno())
            except (OSError, ValueError, AttributeError):
                continue


def _rearm_interrupt(unraisable: Any) -> None:
    """A Ctrl-C that falls into a finaliser cannot be raised there: raise it where the program goes on.

    A moment later, since raised at once it would fall into this hook, and be lost again.
    """
    if unraisable.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(unraisable)
        return
    import _thread
    import threading

    later = threading.Timer(_MOMENT_SECONDS, _thread.interrupt_main)
    later.daemon = True
    later.start()


def _ignore_interrupts() -> None:
    """The exit code stands: a late Ctrl-C changes nothing and prints nothing."""
    import signal

    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    except ValueError:  # Not in the main thread, where Ctrl-C does not arrive anyway.
        return
