"""Run a command and turn every error into one line and an exit code.

Imports are delayed until they are needed, so that the guard is active before the program loads.
"""

from __future__ import annotations

import sys

_OUT_OF_MEMORY = "out of memory: close other programs, or use a smaller model or a shorter context (--ctx)"
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def run_guarded(run: Callable[[], int], *, debug: bool) -> int:
    """Return the exit code of `run`. An error prints one line on standard error, and a traceback with `debug`."""
    try:
        return _run(run, debug=debug)
    finally:
        _discard_output()


def _run(run: Callable[[], int], *, debug: bool) -> int:
    try:
        code = run()
        _flush_output()
        return code
    except KeyboardInterrupt:
        _print_line("interrupted")
        return 130
    except BrokenPipeError as error:
        return _code(error)
    except MemoryError as error:
        _print_line(f"error: {_OUT_OF_MEMORY}")
        return _code(error)
    except Exception as error:  # noqa: BLE001  # Every error becomes one line and an exit code.
        if debug:
            import traceback

            traceback.print_exc()
        _print_line(f"error: {_explanation(error)}")
        return _code(error)


def _code(error: BaseException) -> int:
    from qwchat.cli.exit_codes import exit_code_of

    return int(exit_code_of(error))


def _explanation(error: Exception) -> str:
    from qwchat.cli.exit_codes import is_expected, is_out_of_memory

    if is_expected(error):
        from qwchat.cli.error_messages import error_message

        return error_message(error)
    if is_out_of_memory(error):
        return _OUT_OF_MEMORY
    if isinstance(error, OSError) and error.strerror:
        where = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}"
    return f"internal error: {type(error).__name__}: {error} (--debug shows the traceback)"


def _print_line(text: str) -> None:
    from qwchat.characters import sanitise

    try:
        sys.stderr.write(f"qwchat: {sanitise(' '.join(text.split()))}\n")
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # Standard error is closed, broken or missing.
        return


def _flush_output() -> None:
    """Flush standard output. Raises OSError, except for a terminal that was closed."""
    import errno
    import os
    import stat

    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EIO or not stat.S_ISCHR(os.fstat(sys.stdout.fileno()).st_mode):
            raise


def _discard_output() -> None:
    """Discard output that cannot be written, because of a closed pipe or terminal or a full disk.

    Otherwise Python would try again at exit, print an error and change the exit code to 120.
    """
    import os

    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            try:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)
            except (OSError, ValueError, AttributeError):
                continue
