"""The Typer application: all commands with their help. The module of a command is imported when it runs."""

from __future__ import annotations

import functools
import importlib
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from quant.presets import IMPORTED, IMPORTED_PRESET, PRESETS
from qwchat.cli import (
    completion,
    config_options,
    evaluation_options,
    options,
    serve_options,
    session_options,
    typer_internals,
)
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.guard import run_guarded
from qwchat.cli.typer_callbacks import typer_callback
from qwchat.cli.typer_commands import CliCommand, CliGroup
from qwchat.errors import UsageError

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

_SUMMARIES = {name: preset.summary for name, preset in PRESETS.items()} | {IMPORTED_PRESET: IMPORTED.summary}
_WIDTH = max(map(len, _SUMMARIES))
_PRESETS = "\n".join(f"  {name:<{_WIDTH}}  {summary}" for name, summary in _SUMMARIES.items())
# Text after the options in the help of a command.
_EPILOGS = {"convert": f"\b\nPresets:\n{_PRESETS}"}

# Name, options, module (and function) that runs it, help.
_Commands = tuple[tuple[str, type[Any], str, str], ...]
_COMMANDS: _Commands = (
    ("chat", options.ChatOptions, "qwchat.cli.chat", "Chat with a model (piped text becomes the first message)"),
    ("convert", options.ConvertOptions, "qwchat.cli.convert", "Quantise a Hugging Face checkpoint"),
    ("export", options.ExportOptions, "qwchat.cli.export_model", "Export a model for vLLM, llama.cpp or transformers"),
    ("pull", options.PullOptions, "qwchat.cli.pull", "Download and convert a model, or list the catalogue"),
    ("estimate", options.EstimateOptions, "qwchat.cli.estimate", "Show the memory that a model needs"),
    ("show", options.ShowOptions, "qwchat.cli.show", "Show the formats, shapes, sizes and files of a model"),
    ("verify", options.VerifyOptions, "qwchat.cli.verify", "Check the files of a model against their checksums"),
    ("rm", options.RemoveOptions, "qwchat.cli.remove", "Remove models from the models folder"),
    ("list", options.ListOptions, "qwchat.cli.list_models", "List the models on this machine"),
    (
        "bench",
        options.BenchOptions,
        "qwchat.cli.bench",
        "Measure prefill and decode against the machine's limits",
    ),
    (
        "perplexity",
        evaluation_options.PerplexityOptions,
        "qwchat.cli.perplexity",
        "Measure how well a model predicts text, or its KL divergence",
    ),
    ("serve", serve_options.ServeOptions, "qwchat.cli.serve", "Serve a model over HTTP (OpenAI's protocol)"),
    ("doctor", options.DoctorOptions, "qwchat.cli.doctor", "Check the machine and the installation for problems"),
    (
        "completion",
        options.CompletionOptions,
        "qwchat.cli.app:print_completion",
        "Print the completion script of a shell",
    ),
)

_SESSION_COMMANDS: _Commands = (
    ("list", session_options.SessionsListOptions, "qwchat.cli.sessions:list_all", "List the sessions, latest first"),
    (
        "show",
        session_options.SessionsShowOptions,
        "qwchat.cli.sessions:show",
        "Show the details and messages of a session",
    ),
    (
        "grep",
        session_options.SessionsGrepOptions,
        "qwchat.cli.sessions:grep",
        "Search the messages (exit code 1: no match)",
    ),
    ("rm", session_options.SessionsRemoveOptions, "qwchat.cli.sessions:remove", "Remove sessions after confirmation"),
    (
        "export",
        session_options.SessionsExportOptions,
        "qwchat.cli.sessions:export",
        "Export a session as md, html or json",
    ),
)

_CONFIG_COMMANDS: _Commands = (
    (
        "show",
        config_options.ConfigShowOptions,
        "qwchat.cli.config:show",
        "Show every setting, its value and its origin",
    ),
    ("get", config_options.ConfigGetOptions, "qwchat.cli.config:get", "Print the value of one setting"),
    ("set", config_options.ConfigSetOptions, "qwchat.cli.config:change", "Write a setting to your configuration file"),
    ("edit", config_options.ConfigFileOptions, "qwchat.cli.config:edit", "Open your configuration file in $EDITOR"),
    (
        "check",
        config_options.ConfigCheckOptions,
        "qwchat.cli.config:check",
        "Check files and variables for mistakes",
    ),
    ("path", config_options.ConfigFileOptions, "qwchat.cli.config:path", "Print the path of your configuration file"),
)

# Groups: name, help, commands. Without a command, a group runs its first one.
_COMMAND_GROUPS: tuple[tuple[str, str, _Commands], ...] = (
    ("sessions", "List, show, search, remove and export saved sessions", _SESSION_COMMANDS),
    ("config", "Show, change and check settings", _CONFIG_COMMANDS),
)

_NEGATIVE = re.compile(r"-\.?\d")


def run_app(arguments: Sequence[str], dependencies: Dependencies | None = None) -> int:
    """Run the command line and return its exit code. Errors of the parser and the commands propagate to `main`."""
    completing = completion.VARIABLE in os.environ
    if completing:
        os.environ["COLUMNS"] = "1000"  # Prevents Typer from wrapping descriptions.
    try:
        code = _app(completing=completing)(
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

    The parser has no optional values, so a lone `--resume` becomes `--resume=`; those of `convert` and `export` are
    booleans and stay. It also takes a negative value of `config set` for an option, so `--` is inserted.
    """
    if list(words[:1]) in (["convert"], ["export"]):
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


def _app(*, completing: bool) -> typer.Typer:
    app = typer.Typer(
        name="qwchat",
        cls=CliGroup,
        help=_HELP,
        epilog=_EPILOG,
        add_completion=completing,  # Users have the command `completion`.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    )
    version = Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit")
    ]
    root = typer_callback(options.ReplyOptions, _root, {"version": (version, False)})
    app.callback(invoke_without_command=True)(root)
    for name, options_class, module, help_text in _COMMANDS:
        run = functools.partial(_run, module)
        command = app.command(name, cls=CliCommand, help=help_text, short_help=help_text, epilog=_EPILOGS.get(name))
        command(typer_callback(options_class, run))
    for name, help_text, commands in _COMMAND_GROUPS:
        app.add_typer(_group(commands), name=name, help=help_text, short_help=help_text)
    return app


def _group(commands: _Commands) -> typer.Typer:
    """Return a group of commands; without a command it runs its first one."""
    group = typer.Typer(cls=CliGroup, rich_markup_mode=None)
    _, first_options, first_task, _ = commands[0]
    group.callback(invoke_without_command=True)(
        typer_callback(first_options, functools.partial(_run_default, first_task, first_options()))
    )
    for name, options_class, task, help_text in commands:
        run = functools.partial(_run, task)
        group.command(name, cls=CliCommand, help=help_text, short_help=help_text)(typer_callback(options_class, run))
    return group


def _run_default(task: str, defaults: Any, context: typer.Context, parsed: Any) -> int:
    if context.invoked_subcommand is None:
        return _run(task, context, parsed)
    if parsed != defaults:
        raise UsageError(f"put options after {context.invoked_subcommand!r}")
    return ExitCode.OK


def _root(context: typer.Context, parsed: options.ReplyOptions) -> int:
    command = context.invoked_subcommand
    if command is None:
        return _run("qwchat.cli.answer", context, parsed)
    if parsed.given_flags():
        raise UsageError(f"put {' '.join(parsed.given_flags())} after the command: qwchat {command} …")
    return ExitCode.OK


def _run(task: str, context: typer.Context, parsed: Any) -> int:
    """Run one command: the function `run` of the module `task`, or the function named after its colon.

    Guarded here too, because Typer handles interrupts and broken pipes differently.
    """
    module, _, function = task.partition(":")

    def work() -> int:
        return int(getattr(importlib.import_module(module), function or "run")(parsed, context.obj))

    return run_guarded(work, debug=parsed.debug)


def print_completion(parsed: options.CompletionOptions, dependencies: Dependencies) -> int:
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
