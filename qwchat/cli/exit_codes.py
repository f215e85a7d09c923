"""What the process says when it ends. The only place that knows exit codes."""

from __future__ import annotations

import errno
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command.

    A broken pipe, and a standard output that is closed, end the program as SIGPIPE would (128 + 13), and Ctrl-C as
    SIGINT would (128 + 2), which is what shells and scripts expect.
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
    """The exit code that `error` ends the program with; RUNTIME for what has no code of its own."""
    from quant.errors import ArgumentError, CheckpointError, ContainerError, FormatError
    from qwchat.errors import ConstraintError, ModelError, NotEnoughMemoryError, PromptTooLongError, UsageError

    table: tuple[tuple[tuple[type[BaseException], ...], ExitCode], ...] = (
        ((KeyboardInterrupt,), ExitCode.INTERRUPTED),
        ((BrokenPipeError,), ExitCode.BROKEN_PIPE),
        ((UsageError, ArgumentError), ExitCode.USAGE),
        ((ModelError, CheckpointError, ContainerError, FormatError), ExitCode.MODEL),
        ((PromptTooLongError,), ExitCode.PROMPT_TOO_LONG),
        ((NotEnoughMemoryError, MemoryError), ExitCode.MEMORY),
        ((ConstraintError,), ExitCode.CONSTRAINT),
    )
    other = ExitCode.MEMORY if is_out_of_memory(error) else ExitCode.RUNTIME
    return next((code for kinds, code in table if isinstance(error, kinds)), other)


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether `error`, or what it came from, is the system's or the dynamic loader's way to say that memory is out.

    A library that finds no room is an ImportError to Python, and an OSError of its own making to llvmlite.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            return True
        if isinstance(error, ImportError | OSError) and "failed to map segment" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_expected(error: BaseException) -> bool:
    """Whether `error` explains itself to a person, so that its text is all there is to say."""
    from quant.errors import QuantError
    from qwchat.errors import QwchatError

    return isinstance(error, QwchatError | QuantError)
