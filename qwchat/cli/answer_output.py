"""Output of `qwchat -p`: the streamed reply, one of its code blocks, one JSON object, or JSON events."""

from __future__ import annotations

from collections.abc import Callable

from qwchat.chat.active_constraint import unmet_constraint_message
from qwchat.chat.context_budget import ContextReduction
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.statistics import ending_notice
from qwchat.chat.view.reply import ReplyView
from qwchat.cli import json_output
from qwchat.cli.exit_codes import ExitCode, exit_code_of
from qwchat.cli.extract import extract
from qwchat.cli.options import ReplyOptions
from qwchat.cli.startup import thought_view
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.events import Done, TextEvent, TextStep


class AnswerOutput:
    """Prints replies one after the other.

    Attributes:
        code: exit code so far.
        view: shows a reply while it is generated; None if it is printed at the end.
        on_event: receives every event; None if no output needs them.
        thoughts: shows the thoughts of replies; None if they are only in the JSON output.
    """

    def __init__(
        self, options: ReplyOptions, streams: Streams, model_info: json_output.ModelInfo, view: Callable[[], ReplyView]
    ) -> None:
        self._options, self._streams, self._model_info = options, streams, model_info
        self._events = json_output.EventWriter(streams.out) if options.jsonl else None
        self._answers: list[dict[str, object]] = []
        self._extract_block = options.extract or options.extract_last
        self._block_printed = False
        self._plain = not (options.json or options.jsonl)
        self.code = ExitCode.OK
        self.view = view() if self._plain and not self._extract_block else None
        self.thoughts = thought_view(options, streams) if self._plain else None
        self.on_event: Callable[[TextEvent], None] | None = None if self._plain else self._record_event
        self._text = ""  # of the current reply

    def detach(self) -> None:
        """Leave the rows on the screen as they are: another program wrote to the terminal during the reply."""
        for part in (self.view, self.thoughts):
            if part is not None:
                part.detach()

    def start_answer(self, number: int, reply_settings: ReplySettings) -> None:
        """Start reply number `number`, counted from 0."""
        self._text = ""
        if number and self.view is not None:
            self._streams.write("\n")
        if self._events is not None:
            self._events.start(json_output.request_fields(self._model_info, reply_settings))

    def context_reduced(self, reduction: ContextReduction) -> None:
        """Old turns of the conversation are not sent any more."""
        if self._events is not None:
            self._events.context_reduced(reduction)

    def finish_answer(
        self, done: Done, reply_settings: ReplySettings, session: str | None, left_out: dict[str, int]
    ) -> None:
        """Print a complete reply.

        Args:
            done: the end of the reply.
            reply_settings: settings that it was generated with.
            session: id of the session that it is saved in.
            left_out: number of turns that were dropped or summarised.
        """
        errors: list[str | None] = [unmet_constraint_message(done, reply_settings, reply_settings.max_tokens)]
        answer = json_output.reply_fields(done, reply_settings, self._model_info, left_out) | (
            {"session": session} if session else {}
        )
        if self._extract_block:
            block, error = extract(done, "last" if self._options.extract_last else "first")
            answer["extracted"] = block
            errors.append(None if error is None else str(error))
            if self._plain and block is not None:
                self._streams.write(("\n" if self._block_printed else "") + block + "\n")
                self._block_printed = True
        self._answers.append(answer)
        if self._events is not None:
            self._events.done(answer)
        self._print_remarks(done, reply_settings, [error for error in errors if error is not None])

    def fail_answer(self, error: QwchatError, reply_settings: ReplySettings) -> None:
        """Report in JSON that `error` ended a reply, with the text so far. The caller prints the error."""
        answer = json_output.error_fields(error, int(exit_code_of(error)), self._text, self._model_info, reply_settings)
        if self._events is not None:
            self._events.error(answer)
        self._answers.append(answer)
        self.finish()

    def finish(self) -> ExitCode:
        """Print what remains after the last reply, and return the exit code."""
        if self._options.json:
            whole = self._answers[0] if self._options.count == 1 else {"answers": self._answers}
            self._streams.write(json_output.json_line(whole) + "\n")
        return self.code

    def _record_event(self, event: TextEvent) -> None:
        if isinstance(event, TextStep) and not event.reasoning:
            self._text += event.text
        if self._events is not None:
            self._events.event(event)

    def _print_remarks(self, done: Done, reply_settings: ReplySettings, errors: list[str]) -> None:
        screen = self._streams.screen
        if self._plain:
            notice = ending_notice(done, reply_settings.max_tokens)
            if notice is not None and not errors:
                screen.notice(notice)
            screen.statistics(done, sampled=reply_settings.sampled)
        if done.finish_reason == "cancelled":
            self.code = ExitCode.INTERRUPTED
        elif errors:
            screen.error(errors[0])
            self.code = ExitCode.CONSTRAINT
