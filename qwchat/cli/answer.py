"""The bare `qwchat` and `qwchat -p`: answer one prompt, once or several times."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

from qwchat.chat.attachments import Attachment, LoadedFiles, compose_message
from qwchat.chat.context_budget import attachment_notices, unsent_counts
from qwchat.chat.editor.terminal_modes import hold_keys
from qwchat.chat.interrupts import Interrupts
from qwchat.chat.overflow import OverflowHandler
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.reply_stream import show_reply
from qwchat.chat.session import Session
from qwchat.chat.session_recorder import SessionRecorder
from qwchat.chat.view.prefill_status import PrefillStatus
from qwchat.cli.answer_output import AnswerOutput
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.exit_codes import ExitCode
from qwchat.cli.options import ReplyOptions
from qwchat.cli.reply_models import ReplyModel
from qwchat.cli.session_args import connect_snapshots, create_session, open_recorder, with_session_model
from qwchat.cli.startup import open_model, open_streams, reply_view
from qwchat.cli.streams import Streams, read_files, read_stdin, stdin_is_terminal
from qwchat.errors import DamagedModelError, EndpointError, NonFiniteLogitsError, UsageError
from qwchat.events import Done
from qwchat.limits import MAX_SEED
from qwchat.request import random_seed


def run(options: ReplyOptions, dependencies: Dependencies) -> int:
    """Answer the prompt; without a prompt, chat on a terminal. Returns the exit code."""
    if options.prompt is None and stdin_is_terminal():
        from qwchat.cli import chat

        return chat.converse(options, dependencies)
    piped_schema = options.flags.get("json-schema") == "-"
    if piped_schema:
        _hint_at_terminal_input("JSON schema", Streams())
    options = options.with_piped_schema(read_stdin)
    options.check()
    streams = open_streams(options)
    if options.prompt == "-" or "-" in (options.file or ()):
        _hint_at_terminal_input("question" if options.prompt == "-" else "text", streams)
    prompt = question(options, piped=not piped_schema)
    recorder = open_recorder(options, streams.screen, chat=False)
    if recorder is None:
        return ExitCode.OK
    options = with_session_model(recorder, options, streams.screen)
    with closing(open_model(options, dependencies, streams)) as model:
        try:
            return _answer(options, prompt, model, streams, recorder)
        finally:
            recorder.close()


def _hint_at_terminal_input(what: str, streams: Streams) -> None:
    """Tell the user that standard input is read, if that is a terminal."""
    if stdin_is_terminal():
        streams.screen.hint(f"type the {what}, then Ctrl-D on a line of its own")


@dataclass(frozen=True)
class Question:
    """What the user asks.

    Attributes:
        message: the whole message for the model.
        files: the files in it, with notices about skipped ones.
    """

    message: str
    files: LoadedFiles


def question(options: ReplyOptions, *, piped: bool = True) -> Question:
    """Build the message from files, standard input and the prompt, in this order, with blank lines between them.

    Args:
        options: options of the command line.
        piped: standard input is part of the message. Files alone are sent without a heading.

    Raises:
        UsageError: the message is empty, or a file cannot be read.
    """
    files = read_files(options.file or ())
    piped_file = "-" in (options.file or ())
    if piped_file and options.prompt == "-":
        raise UsageError("-p - and -f - both read standard input: choose one")
    from_pipe = options.prompt == "-" or (piped and not (stdin_is_terminal() or piped_file))
    parts = [read_stdin() if from_pipe else "", "" if options.prompt in (None, "-") else options.prompt or ""]
    text = "\n\n".join(part for part in parts if part.strip())
    if text:
        return Question(compose_message(files.attachments, text), files)
    verbatim = "\n\n".join(attachment.text for attachment in files.attachments if attachment.text.strip())
    if not verbatim:
        raise UsageError('the prompt is empty: ask a question, such as qwchat -p "What can you do?"')
    return Question(verbatim, files)


def _answer(
    options: ReplyOptions,
    prompt: Question,
    model: ReplyModel,
    streams: Streams,
    recorder: SessionRecorder,
) -> int:
    reply_settings = ReplySettings.from_settings(options.settings, model.opened.defaults)
    first_seed = random_seed() if reply_settings.seed is None else reply_settings.seed
    output = AnswerOutput(options, streams, model.info, partial(reply_view, options, streams))
    status = PrefillStatus(streams.screen.stream, streams.screen.styling, enabled=streams.rewritable)
    connect_snapshots(recorder, options, model, streams.screen)
    greedy = "--temp 0" if not reply_settings.sampled else "--top-k 1" if reply_settings["top-k"] == 1 else None
    if options.count > 1 and greedy is not None:
        streams.screen.notice(f"all {options.count} replies will be equal: {greedy} always picks the most likely token")
    for number in range(options.count):
        if number:
            recorder.start()
        seeded = replace(reply_settings, seed=(first_seed + number) % (MAX_SEED + 1))
        session = create_session(recorder, options, seeded, model, streams.screen)
        session.logprobs = options.logprobs or 0
        if number == 0:
            for notice in prompt.files.notices:
                streams.screen.notice(notice)
        output.start_answer(number, session.reply_settings)
        overflow = OverflowHandler(session, streams.screen, None, output.context_reduced)
        # Echoed keys would shift rows that are redrawn.
        try:
            with hold_keys(streams.out, by_line=True, on_resume=output.detach), model.with_repair_command():
                attached = () if number else prompt.files.attachments
                done = _reply(session, prompt.message, attached, overflow, output, status, streams)
                if done.finish_reason != "cancelled":
                    model.wait_until_checked(streams)
        except (DamagedModelError, NonFiniteLogitsError, EndpointError) as error:
            recorder.flush()
            output.fail_answer(error, session.reply_settings)
            raise
        recorder.flush()
        output.finish_answer(done, session.reply_settings, recorder.id, unsent_counts(session, session.end))
        if done.finish_reason == "cancelled":
            break
    return output.finish()


def _reply(
    session: Session,
    message: str,
    attached: Sequence[Attachment],
    overflow: OverflowHandler,
    output: AnswerOutput,
    status: PrefillStatus,
    streams: Streams,
) -> Done:
    """Ask the question, make the prompt fit, and stream the reply.

    Args:
        session: the conversation.
        message: the question.
        attached: files to report.
        overflow: makes the prompt fit in the context window.
        output: prints the reply.
        status: shows the progress of prefill.
        streams: the standard streams.
    """
    interrupts = Interrupts()
    with interrupts.deferred():
        reply = session.ask(message)
        prompt = session.prompt(reply)
        for line in attachment_notices(session.model, attached, prompt):
            streams.screen.notice(line)
        fitting = overflow.fit(reply, prompt, lambda begin: show_reply(begin, None, status, interrupts=interrupts))
        assert fitting is not None, "only the user can decline"
        begin = partial(session.stream, reply, fitting)
        return show_reply(begin, output.view, status, output.on_event, interrupts, thoughts=output.thoughts)
