"""The Typer application: all commands with their help. The module of a command is imported when it runs."""

from __future__ import annotations

import functools
import gc
import os
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwchat.cli import completion, options, typer_internals
from qwchat.cli.command_table import COMMANDS, GROUPS, Command, Group
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.guard import run_guarded
from qwchat.cli.typer_callbacks import typer_callback
from qwchat.cli.typer_commands import CliCommand, CliGroup, LazyCommands
from qwchat.errors import UsageError

if TYPE_CHECKING:
    from qwchat.cli.machine_options import CompletionOptions

_HELP = """Chat with a quantised Qwen2 model on this machine

\b
  qwchat                                chat with the built-in model
  qwchat -p "What can you do?"          print one reply
  git diff | qwchat -p "Review this."   put piped text before the prompt
  qwchat convert ./Qwen2-7B-Instruct    quantise a checkpoint
  qwchat -m Qwen2-7B-Instruct-q4        chat with it
"""

_EPILOG = """Exit codes: 0 success, 1 other failure, 2 usage error, 3 model missing or damaged, 4 prompt too long,
5 out of memory, 6 constraint not met, 130 interrupted (SIGINT), 141 broken pipe (SIGPIPE)
"""

_Find = Callable[[], Callable[..., int]]  # Imports and returns the function that runs a command.
_NEGATIVE = re.compile(r"-\.?\d")


def run_app(arguments: Sequence[str], dependencies: Dependencies | None = None) -> int:
    """Run the command line and return its exit code. Errors of the parser and the commands propagate to `main`."""
    completing = completion.VARIABLE in os.environ
    if completing:
        os.environ["COLUMNS"] = "1000"  # Prevents Typer from wrapping descriptions.
    try:
        code = make_command_line(completing=completing)(
            expand_arguments(arguments), prog_name="qwchat", standalone_mode=False, obj=dependencies or Dependencies()
        )
    except typer_internals.PARSER_ERROR as error:
        raise UsageError(_error_sentence(error)) from error
    except SystemExit as end:  # Typer exits with 1 on a broken pipe.
        if isinstance(end.__context__, BrokenPipeError):
            raise end.__context__ from None
        raise
    return int(code or 0)


def expand_arguments(words: Sequence[str]) -> list[str]:
    """Return the command-line `words` in the form that the parser understands.

    The parser has no optional values, so a lone `--resume` becomes `--resume=`; those of some commands are
    booleans and stay. It also takes a negative value of `config set` for an option, so `--` is inserted.
    """
    if words[:1] and words[0] in ("calibrate", "convert", "export", "sensitivity"):
        return list(words)
    if list(words[:2]) == ["config", "set"] and "--" not in words:
        negative = [word for word in words if _NEGATIVE.match(word)]
        return [*(word for word in words if word not in negative), *(["--", *negative] if negative else [])]
    pairs = zip(words, [*words[1:], "-"], strict=False)  # A sentinel after the last word.
    return ["--resume=" if word == "--resume" and following.startswith("-") else word for word, following in pairs]


def _error_sentence(error: Exception) -> str:
    """Return a parser error in the style of qwchat: one line, lower case, with a pointer to --help."""
    message, command = typer_internals.error_text(error)
    text = " ".join(message.split()).rstrip(".")
    return f"{text[:1].lower()}{text[1:]} ({command or 'qwchat'} --help shows the options)"


def make_command_line(*, completing: bool) -> CliGroup:
    """Return the command line. Its commands are made when they are asked for."""
    app = typer.Typer(
        name="qwchat",
        cls=CliGroup,
        help=_HELP,
        epilog=_EPILOG,
        add_completion=completing,  # Users have the command `completion`.
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    version = Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit")
    ]
    root = typer_callback(options.ReplyOptions, _root, {"version": (version, False)})
    app.callback(invoke_without_command=True)(root)
    line = _made(app)
    line.commands = LazyCommands(
        _makers(COMMANDS) | {group.name: (group.help, functools.partial(_group, group)) for group in GROUPS}
    )
    return line


def _makers(commands: Sequence[Command]) -> dict[str, tuple[str, Callable[[], Any]]]:
    """Return the help of each command and the function that makes it, by name."""
    return {command.name: (command.help, functools.partial(_command, command)) for command in commands}


def _command(command: Command) -> Any:
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    run = functools.partial(_run, command.function if command.task else lambda: print_completion)
    add = app.command(command.name, cls=CliCommand, help=command.help, short_help=command.help, epilog=command.epilog)
    add(typer_callback(command.options_class(), run))
    return typer.main.get_command(app)


def _group(group: Group) -> CliGroup:
    app = typer.Typer(
        name=group.name,
        cls=CliGroup,
        help=group.help,
        short_help=group.help,
        rich_markup_mode=None,
        add_completion=False,
    )
    first = group.commands[0]
    defaults = first.options_class()
    run = functools.partial(_run_default, first.function, defaults())
    app.callback(invoke_without_command=True)(typer_callback(defaults, run))
    made = _made(app)
    made.commands = LazyCommands(_makers(group.commands))
    return made


def _made(app: typer.Typer) -> CliGroup:
    made = typer.main.get_command(app)
    assert isinstance(made, CliGroup)
    return made


def _run_default(find: _Find, defaults: Any, context: typer.Context, parsed: Any) -> int:
    if context.invoked_subcommand is None:
        return _run(find, context, parsed)
    if parsed != defaults:
        raise UsageError(f"put options after {context.invoked_subcommand!r}")
    return ExitCode.OK


def _root(context: typer.Context, parsed: options.ReplyOptions) -> int:
    command = context.invoked_subcommand
    if command is None:
        return _run(_answer, context, parsed)
    if parsed.given_flags():
        raise UsageError(f"put {' '.join(parsed.given_flags())} after the command: qwchat {command} …")
    return ExitCode.OK


def _answer() -> Callable[..., int]:
    from qwchat.cli import answer

    return answer.run


def _run(find: _Find, context: typer.Context, parsed: Any) -> int:
    """Run the function that `find` imports and returns.

    Guarded here too, because Typer handles interrupts and broken pipes differently.
    """

    def work() -> int:
        function = find()
        gc.enable()
        return int(function(parsed, context.obj))

    return run_guarded(work, debug=parsed.debug)


def print_completion(parsed: CompletionOptions, dependencies: Dependencies) -> int:
    """Print the completion script of a shell."""
    os.environ[completion.VARIABLE] = f"source_{parsed.shell}"
    try:
        run_app([], dependencies)
    except SystemExit as end:  # Typer exits after a completion.
        return ExitCode.OK if end.code in (0, None) else ExitCode.RUNTIME
    return ExitCode.OK


def _show_version(wanted: bool) -> None:
    if wanted:
        import sys

        import qwchat

        sys.stdout.write(f"qwchat {qwchat.__version__}\n")
        raise typer.Exit
