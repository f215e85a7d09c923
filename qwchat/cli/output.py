"""What a one-shot prints: the reply as it comes, a code block of it, one JSON object, or events."""

from __future__ import annotations

from collections.abc import Callable

from qwchat.chat.active_constraint import complaint
from qwchat.chat.context_budget import ContextReduction
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.statistics import ending_notice
from qwchat.chat.view.reply import ReplyView
from qwchat.cli import report
from qwchat.cli.exit_codes import ExitCode, exit_code_of
from qwchat.cli.extract import extract
from qwchat.cli.options import ReplyOptions
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError
from qwchat.events import Done, TextEvent, TextStep


class Output:
    """Prints answers one after the other.

    Attributes:
        code: the exit code so far.
        view: where a reply is shown while it comes; None where it is printed when it is there.
        watch: is to be told every event; None where nobody asks.
    """

    def __init__(
        self, options: ReplyOptions, streams: Streams, facts: report.Facts, view: Callable[[], ReplyView]
    ) -> None:
        self._options, self._streams, self._facts = options, streams, facts
        self._events = report.EventWriter(streams.out) if options.jsonl else None
        self._answers: list[dict[str, object]] = []
        self._extracts = options.extract or options.extract_last
        self._extracted = False
        self._plain = not (options.json or options.jsonl)
        self.code = ExitCode.OK
        self.view = view() if self._plain and not self._extracts else None
        self.watch: Callable[[TextEvent], None] | None = None if self._plain else self._note
        self._text = ""  # of the answer that is on its way

    def begin(self, number: int, controls: ReplySettings) -> None:
        """The answer `number`, from 0, begins."""
        self._text = ""
        if number and self.view is not None:
            self._streams.write("\n")
        if self._events is not None:
            self._events.start(report.request(self._facts, controls))

    def made_room(self, room: ContextReduction) -> None:
        """Old turns of the conversation are not sent any more."""
        if self._events is not None:
            self._events.made_room(room)

    def take(self, done: Done, controls: ReplySettings, session: str | None, left_out: dict[str, int]) -> None:
        """An answer is complete; `session`: where it is kept; `left_out`: turns that the model was not given."""
        errors: list[str | None] = [complaint(done, controls, controls.max_tokens)]
        answer = report.answer(done, controls, self._facts, left_out) | ({"session": session} if session else {})
        if self._extracts:
            block, error = extract(done, "last" if self._options.extract_last else "first")
            answer["extracted"] = block
            errors.append(None if error is None else str(error))
            if self._plain and block is not None:
                self._streams.write(("\n" if self._extracted else "") + block + "\n")
                self._extracted = True
        self._answers.append(answer)
        if self._events is not None:
            self._events.done(answer)
        self._remark(done, controls, [error for error in errors if error is not None])

    def fail(self, error: ModelError, controls: ReplySettings) -> None:
        """The answer is broken off by `error`, which the caller tells of: say so in JSON, with the text so far."""
        answer = report.failure(error, int(exit_code_of(error)), self._text, self._facts, controls)
        if self._events is not None:
            self._events.error(answer)
        self._answers.append(answer)
        self.end()

    def end(self) -> ExitCode:
        """All answers are there; the exit code."""
        if self._options.json:
            whole = self._answers[0] if self._options.count == 1 else {"answers": self._answers}
            self._streams.write(report.dumps(whole) + "\n")
        return self.code

    def _note(self, event: TextEvent) -> None:
        if isinstance(event, TextStep):
            self._text += event.text
        if self._events is not None:
            self._events.event(event)

    def _remark(self, done: Done, controls: ReplySettings, errors: list[str]) -> None:
        screen = self._streams.screen
        if self._plain:
            notice = ending_notice(done, controls.max_tokens)
            if notice is not None and not errors:
                screen.notice(notice)
            screen.statistics(done, sampled=controls.sampled)
        if done.finish_reason == "cancelled":
            self.code = ExitCode.INTERRUPTED
        elif errors:
            screen.error(errors[0])
            self.code = ExitCode.CONSTRAINT
