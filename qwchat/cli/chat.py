"""The command `qwchat chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, TextIO

from qwchat.chat.active_persona import ActivePersona
from qwchat.chat.chat_models import OpenedModel
from qwchat.chat.chat_settings import ChatSettings
from qwchat.chat.commands import CommandContext, suggestions
from qwchat.chat.context_budget import ContextMeter
from qwchat.chat.editor.history import history_file
from qwchat.chat.editor.message_reader import MessageReader
from qwchat.chat.editor.open_reader import open_reader
from qwchat.chat.editor.plain_reader import PlainReader
from qwchat.chat.editor.terminal_modes import hold_keys
from qwchat.chat.loop import Chat
from qwchat.chat.recap import last_thought
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session_recorder import ChooseSession
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.thoughts import ThoughtMode, ThoughtSwitch, ThoughtView
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode, exit_code_of
from qwchat.cli.loaded_models import LoadedModels
from qwchat.cli.options import ChatOptions, ReplyOptions
from qwchat.cli.reply_models import ReplyModel
from qwchat.cli.session_args import (
    connect_snapshots,
    continued_reply_settings,
    create_session,
    interactive_chooser,
    numbered_list_chooser,
    open_recorder,
    resume_command,
    show_last_exchange,
    with_session_model,
)
from qwchat.cli.startup import open_model, open_streams, rendering_of, reply_view, thought_view
from qwchat.cli.streams import Streams, controlling_terminal, read_files, read_stdin, stdin_is_terminal
from qwchat.errors import DamagedModelError, UsageError


@dataclass(frozen=True)
class InputSource:
    """Where the user's input comes from.

    Attributes:
        terminal: the terminal, or None.
        piped: text that was read from a pipe before the chat.
    """

    terminal: TextIO | None
    piped: str


def run(options: ChatOptions, dependencies: Dependencies) -> int:
    """Run `qwchat chat [MODEL]`."""
    return converse(options.with_model_argument(), dependencies)


def converse(options: ReplyOptions, dependencies: Dependencies) -> int:
    """Chat until the user leaves, and return the exit code. Raises UsageError for options of `-p` only."""
    if options.flags.get("json-schema") == "-":
        raise UsageError("--json-schema - works only with -p: in a chat, give the name of a file")
    for flag, given in (
        ("--json", options.json),
        ("--jsonl", options.jsonl),
        ("--count", options.count != 1),
        ("--extract", options.extract),
        ("--extract-last", options.extract_last),
        ("--logprobs", options.logprobs is not None),
    ):
        if given:
            raise UsageError(f"{flag} works only with -p, not in a chat")
    options.check()
    streams = open_streams(options)
    input_source = _find_input(options)
    if "-" in (options.file or ()):
        raise UsageError("-f - works only with -p: in a chat, pipe the text in without -f")
    files = read_files(options.file or ())
    first_message = "\n\n".join(part for part in (input_source.piped, options.prompt or "") if part.strip())
    line_input = options.settings["plain"] or _uses_line_input(input_source)
    with ExitStack() as stack:
        choose = _session_chooser(input_source, streams, line_input=line_input)
        recorder = open_recorder(options, streams.screen, chat=True, choose=choose)
        if recorder is None:
            return ExitCode.OK
        options = with_session_model(recorder, options, streams.screen)
        advice = f" ({'/think' if line_input else 'Ctrl-T'} shows it)"
        view, thoughts = reply_view(options, streams), thought_view(options, streams, advice)
        if input_source.terminal is not None and not line_input:
            # For the whole chat, so that keys typed between prompts are not lost.
            stack.enter_context(
                hold_keys(input_source.terminal, by_line=False, on_resume=lambda: _detach(view, thoughts))
            )
        model = open_model(options, dependencies, streams)
        models = stack.enter_context(closing(LoadedModels(model, dependencies, streams)))
        stack.callback(recorder.close)  # Before the model is closed.
        reply_settings = ReplySettings.from_settings(options.settings, model.opened.defaults)
        models.snapshots = connect_snapshots(recorder, options, model, streams.screen)
        session = create_session(recorder, options, reply_settings, model, streams.screen)
        session.reply_settings = continued_reply_settings(recorder, options, reply_settings, streams.screen)
        context = CommandContext(
            session,
            model.opened.name,
            view,
            attached=list(files.attachments),
            recorder=recorder,
            choose=choose,
            models=models,
        )
        chat = Chat(
            context=context,
            reader=_open_reader(input_source, context, streams, thoughts, line_input=line_input),
            screen=streams.screen,
            status=PrefillStatus(streams.screen.stream, streams.screen.styling, enabled=streams.rewritable),
            interactive=input_source.terminal is not None,
            thoughts=thoughts,
        )
        _connect_settings(chat, options, model.opened, streams, thoughts)
        streams.screen.notice(f"{model.description}; /help for help, Ctrl-D to leave")
        if (project := options.settings.project) is not None:
            streams.screen.notice(f"using settings from {project}; /set shows them")
        show_last_exchange(recorder, view, streams.screen, watched=streams.out_styling.terminal)
        for notice in files.notices:
            streams.screen.notice(notice)
        try:
            chat.run(first_message or None)
        finally:
            command = resume_command(recorder) if chat.interactive and not streams.screen.quiet else None
            if command is not None:
                streams.screen.hint(f"to continue: {command}")
        return _exit_code_of_chat(chat, models.model, streams)


def _exit_code_of_chat(chat: Chat, model: ReplyModel, streams: Streams) -> int:
    """Return the exit code after a chat. Raises DamagedModelError if a file of the model is damaged."""
    with model.with_repair_command():
        if isinstance(chat.failure, DamagedModelError):
            raise chat.failure
        if not chat.interactive:  # A user who leaves does not wait for the check.
            model.wait_until_checked(streams)
        model.raise_if_damaged()
    return ExitCode.OK if chat.failure is None else exit_code_of(chat.failure)


def _detach(view: ReplyView, thoughts: ThoughtView) -> None:
    """Leave the rows on the screen as they are: another program wrote to the terminal during the reply."""
    view.detach()
    thoughts.detach()


def _connect_settings(
    chat: Chat, options: ReplyOptions, opened: OpenedModel, streams: Streams, thoughts: ThoughtView
) -> None:
    """Connect the settings and the persona of the chat with the objects that apply their changes."""
    context = chat.context

    def set_thinking(mode: ThoughtMode) -> None:
        thoughts.mode, context.session.thinking = mode, mode != "off"

    look: dict[str, Callable[[Any], None]] = {
        "render": lambda choice: context.view.set_rendering(rendering_of(choice, options, streams)),
        "think": set_thinking,
        "quiet": streams.screen.set_quiet,
        "stats": streams.screen.set_figures_form,
        "bell": streams.screen.set_bell,
        "editing-mode": chat.reader.set_editing_mode,
    }
    for name in ("bell", "editing-mode"):
        look[name](options.settings[name])
    context.settings = ChatSettings(context.session, options.settings, opened.model, look)
    settings_without_persona = options.without_persona
    reply_settings_without_persona, settings = (
        ReplySettings.from_settings(settings_without_persona, opened.defaults),
        options.settings,
    )
    persona_prompt = settings["system"] if settings.origin("system").startswith("persona ") else None
    context.persona = ActivePersona(
        context.session,
        reply_settings_without_persona,
        settings_without_persona["system"],
        settings["as"],
        persona_prompt,
    )


def _find_input(options: ReplyOptions) -> InputSource:
    """Return the source of input, after reading a pipe if there is also a terminal.

    Without a terminal, the lines of standard input are the messages, so that a chat can be scripted.
    """
    if options.prompt == "-":
        raise UsageError("-p - works only outside a chat: in a chat, pipe the text in without -p")
    if stdin_is_terminal():
        return InputSource(sys.stdin, "")
    terminal = controlling_terminal()
    return InputSource(terminal, read_stdin() if terminal is not None else "")


def _session_chooser(input_source: InputSource, streams: Streams, *, line_input: bool) -> ChooseSession | None:
    """Return the function that lets the user choose a session; None without a terminal."""
    if input_source.terminal is None:
        return None
    if not line_input:
        return interactive_chooser(input_source.terminal, streams.screen.styling)
    return numbered_list_chooser(PlainReader(input_source.terminal, streams.screen.stream).read, streams.screen)


def _uses_line_input(input_source: InputSource) -> bool:
    """Return True if input is read by lines: no terminal, a dumb one, or no output to draw an editor on."""
    drawable = any(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr))
    return input_source.terminal is None or os.environ.get("TERM", "") in ("dumb", "") or not drawable


def _open_reader(
    input_source: InputSource,
    context: CommandContext,
    streams: Streams,
    thoughts: ThoughtView,
    *,
    line_input: bool,
) -> MessageReader:
    if input_source.terminal is not None and not line_input:
        suggest = partial(suggestions, context)
        meter = ContextMeter(context.session)
        switch = ThoughtSwitch(thoughts, lambda: last_thought(context.session.tree))
        return open_reader(
            input_source.terminal, suggest, streams.screen, history=history_file(), thoughts=switch, meter=meter
        )
    source = input_source.terminal or sys.stdin
    if source is None:
        raise UsageError("there is neither a terminal nor standard input to read messages from")
    return PlainReader(source, streams.screen.stream if input_source.terminal is not None else None)
