"""The exit codes, and the errors that cause them."""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of all commands.

    A broken pipe, or a closed standard output, gives the code of SIGPIPE (128 + 13), and Ctrl-C the code of SIGINT (128
    + 2), as shells and scripts expect.
    """

    OK = 0
    RUNTIME = 1
    USAGE = 2
    MODEL = 3
    PROMPT_TOO_LONG = 4
    MEMORY = 5
    CONSTRAINT = 6
    INTERRUPTED = 130
    BROKEN_PIPE = 141


def exit_code_of(error: BaseException) -> ExitCode:
    """Return the exit code for `error`; RUNTIME if it has no code of its own."""
    from quant.errors import ArgumentError, CheckpointError, ContainerError, FormatError, StatisticsError
    from qwchat.errors import ConstraintError, ModelError, NotEnoughMemoryError, PromptTooLongError, UsageError

    table: tuple[tuple[tuple[type[BaseException], ...], ExitCode], ...] = (
        ((KeyboardInterrupt,), ExitCode.INTERRUPTED),
        ((BrokenPipeError,), ExitCode.BROKEN_PIPE),
        ((UsageError, ArgumentError), ExitCode.USAGE),
        ((ModelError, CheckpointError, ContainerError, FormatError, StatisticsError), ExitCode.MODEL),
        ((PromptTooLongError,), ExitCode.PROMPT_TOO_LONG),
        ((NotEnoughMemoryError, MemoryError), ExitCode.MEMORY),
        ((ConstraintError,), ExitCode.CONSTRAINT),
    )
    other = ExitCode.MEMORY if is_out_of_memory(error) else ExitCode.RUNTIME
    return next((code for kinds, code in table if isinstance(error, kinds)), other)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Return True if `error` or one of its causes means that memory is exhausted.

    A library that cannot be mapped is an ImportError in Python and an OSError in llvmlite.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, ImportError | OSError) and "failed to map segment" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_expected(error: BaseException) -> bool:
    """Return True if the message of `error` is meant for the user."""
    from quant.errors import QuantError
    from qwchat.errors import QwchatError

    return isinstance(error, QwchatError | QuantError)
