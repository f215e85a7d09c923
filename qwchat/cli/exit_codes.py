"""What the process says when it ends. The only place that knows exit codes."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command.

    A reader that closed its end of the pipe ends the program as SIGPIPE would (128 + 13), and Ctrl-C as SIGINT would
    (128 + 2), which is what shells and scripts expect.
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
    """The exit code that ``error`` ends the program with; RUNTIME for what has no code of its own."""
    from quant.errors import CheckpointError, ContainerError, FormatError
    from quant.errors import UsageError as QuantUsageError
    from qwchat.errors import ConstraintError, ModelError, NotEnoughMemoryError, PromptTooLongError, UsageError

    table: tuple[tuple[tuple[type[BaseException], ...], ExitCode], ...] = (
        ((KeyboardInterrupt,), ExitCode.INTERRUPTED),
        ((BrokenPipeError,), ExitCode.BROKEN_PIPE),
        ((UsageError, QuantUsageError), ExitCode.USAGE),
        ((ModelError, CheckpointError, ContainerError, FormatError), ExitCode.MODEL),
        ((PromptTooLongError,), ExitCode.PROMPT_TOO_LONG),
        ((NotEnoughMemoryError, MemoryError), ExitCode.MEMORY),
        ((ConstraintError,), ExitCode.CONSTRAINT),
    )
    return next((code for kinds, code in table if isinstance(error, kinds)), ExitCode.RUNTIME)


def is_expected(error: BaseException) -> bool:
    """Whether ``error`` explains itself to a person, so that its text is all there is to say."""
    from quant.errors import QuantError
    from qwchat.errors import QwchatError

    return isinstance(error, QwchatError | QuantError)
