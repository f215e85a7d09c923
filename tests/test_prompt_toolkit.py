"""Assumptions of `qwchat.chat.editor.toolkit` about prompt-toolkit: private names, undocumented modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from prompt_toolkit import PromptSession
from prompt_toolkit.application import create_app_session, get_app
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.input.ansi_escape_sequences import ANSI_SEQUENCES
from prompt_toolkit.key_binding import KeyBindings, KeyPress, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import DummyOutput

from qwchat.chat.editor import toolkit


@pytest.fixture
def keys() -> Iterator[PipeInput]:
    with create_pipe_input() as pipe:
        yield pipe


def test_a_registered_sequence_is_read_as_its_key(keys: PipeInput, monkeypatch: pytest.MonkeyPatch) -> None:
    sequence = "\x1b[99;9u"
    monkeypatch.setitem(ANSI_SEQUENCES, sequence, Keys.Ignore)  # Remove it afterwards.
    toolkit.map_sequences([sequence], Keys.F24)
    keys.send_text(sequence)
    assert [press.key for press in keys.read_keys()] == [Keys.F24]


def test_keys_typed_ahead_wait_for_the_next_prompt_of_their_source(keys: PipeInput) -> None:
    first, second = KeyPress("a"), KeyPress("b")
    toolkit.type_ahead(keys, [first])
    toolkit.type_ahead(keys, [second])
    with create_pipe_input() as other:
        assert toolkit.take_typed_ahead(other) == []
    assert toolkit.take_typed_ahead(keys) == [first, second]
    assert toolkit.take_typed_ahead(keys) == []
    toolkit.type_ahead(keys, [first, second, KeyPress(Keys.ControlM, "\r")])
    assert PromptSession(input=keys, output=DummyOutput()).prompt() == "ab"


def test_an_unsent_draft_is_the_newest_entry_and_is_not_stored() -> None:
    class Kept(History):
        stored: list[str] = []  # noqa: RUF012

        def load_history_strings(self) -> Iterable[str]:
            return []

        def store_string(self, string: str) -> None:
            self.stored.append(string)

    history = Kept()
    history.append_string("one")
    toolkit.add_to_history(history, "two")
    assert history.get_strings() == ["one", "two"]
    assert history.stored == ["one"]
    plain = InMemoryHistory()
    toolkit.add_to_history(plain, "x")
    assert plain.get_strings() == ["x"]


def test_a_binding_sees_pending_keys(keys: PipeInput) -> None:
    seen: list[bool] = []
    bindings = KeyBindings()

    @bindings.add("x")
    def note(event: KeyPressEvent) -> None:
        seen.append(toolkit.has_pending_keys())

    session: PromptSession[str] = PromptSession(input=keys, output=DummyOutput(), key_bindings=bindings)
    keys.send_text("xx\r")
    with create_app_session(keys, DummyOutput()):
        assert session.prompt() == ""
    assert seen == [True, True]
    assert not get_app().is_running
    assert not toolkit.has_pending_keys()


def test_an_application_exits_once(keys: PipeInput) -> None:
    session: PromptSession[str] = PromptSession(input=keys, output=DummyOutput())
    toolkit.exit_with(session.app, EOFError)  # Not running, so nothing happens.

    def end_twice() -> None:
        toolkit.exit_with(session.app, EOFError)
        toolkit.exit_with(session.app, KeyboardInterrupt)

    with pytest.raises(EOFError):
        session.prompt(pre_run=lambda: session.app.loop.call_soon(end_twice))  # type: ignore[union-attr]


def test_the_callback_for_missing_cursor_reports_is_optional(keys: PipeInput) -> None:
    session: PromptSession[str] = PromptSession(input=keys, output=DummyOutput())
    assert session.app.renderer.cpr_not_supported_callback is not None
    toolkit.expect_no_cursor_reports(session.app)
    keys.send_text("a\r")
    assert session.prompt() == "a"


def test_width_of_a_text_in_columns() -> None:
    assert [toolkit.cell_width(text) for text in ("", "abc", "漢字", "é")] == [0, 3, 4, 1]
