"""The chat's commands: what counts as one, what each returns."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest

from qwchat.chat.commands import COMMANDS, CommandContext, Outcome, Quit, Show, message_text, parse, suggestions
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.errors import UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying


def desk(session: Session | None = None) -> CommandContext:
    session = session or Session(FakeModel(), ReplySettings(SamplingParams(temperature=0.7)))
    return CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))


def obey(place: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(place, command[1])


@pytest.mark.parametrize(
    "text",
    ["hello", "//clear", "/usr/bin/env", "/ 2", "what is /help?", "/etc", "/foo\nbar", "</s>", "/é"],
)
def test_what_is_a_message(text: str) -> None:
    if text == "/etc":
        with pytest.raises(UsageError, match=r"there is no command /etc: .*begin with //"):
            parse(text)
    else:
        assert parse(text) is None


def test_two_slashes_send_one() -> None:
    assert message_text("//clear") == "/clear"
    assert message_text("/usr/bin") == "/usr/bin"


@pytest.mark.parametrize("text", ["/CLEAR", " /clear ", "/clear\n"])
def test_how_a_command_may_be_typed(text: str) -> None:
    assert obey(desk(), text) == Show("the conversation is empty already")


def test_help_lists_every_command_with_its_summary_and_says_more_about_one() -> None:
    shown = obey(desk(), "/help")
    assert isinstance(shown, Show)
    for command in COMMANDS:
        assert re.search(rf"^  {re.escape(command.usage)} +{re.escape(command.summary)}$", shown.text, re.MULTILINE)
    assert obey(desk(), "/help save") == Show(
        "/save FILE  write the conversation as Markdown, or as .html or .json\n\n"
        "The conversation up to here, without alternatives. A file that this chat did not write is left alone."
    )
    for elsewhere, here in (("leave", "quit"), ("forget", "undo"), ("regen", "retry"), ("load", "resume")):
        with pytest.raises(UsageError, match=rf"there is no command /{elsewhere}: did you mean /{here}\?"):
            obey(desk(), f"/{elsewhere}")
    with pytest.raises(UsageError, match=r"there is no command /sav: did you mean /save\?"):
        obey(desk(), "/help sav")


def test_what_may_follow_is_suggested(tmp_path: Path) -> None:
    (tmp_path / "talk.md").touch()
    (tmp_path / "talks").mkdir()
    place = desk()
    assert [(s.text, s.replaced) for s in suggestions(place, "/re")][:1] == [("/retry", 3)]
    assert [(s.text, s.replaced, s.note) for s in suggestions(place, "/set tem")] == [("temp", 3, "0.7")]
    assert [(s.text, s.replaced, s.note) for s in suggestions(place, "/set speculate o")] == [
        ("on", 1, ""),
        ("off", 1, ""),
    ]
    assert [(s.text, s.note) for s in suggestions(place, "/set seed d")] == [
        ("default", "a whole number from 0 to 18446744073709551615, or random"),
        ("random", ""),
    ]
    assert list(suggestions(place, "/set nothing x")) == []
    assert [s.text for s in suggestions(place, f"/save {tmp_path}/ta")] == ["talk.md", "talks/"]
    assert list(suggestions(place, "hello /re")) == []


def test_system_prompts_come_and_go() -> None:
    place = desk()
    assert obey(place, "/system") == Show("no system prompt is set")
    obey(place, "/system Speak\nin verse.")
    assert place.session.system == "Speak\nin verse."
    assert obey(place, "/system") == Show(said="Speak\nin verse.")
    obey(place, "/system none")
    assert place.session.messages == []


def test_set_shows_everything_and_changes_one_thing() -> None:
    place = desk()
    shown = obey(place, "/set")
    assert isinstance(shown, Show)
    assert format_answer(shown.above, shown.text).splitlines()[:2] == [
        "setting            value   from",
        "temp               0.7     built in",
    ]
    assert obey(place, "/set temp 0.2") == Show("temp 0.2")
    assert obey(place, "/set stop The End") == Show("stop 'The End'")
    assert obey(place, "/set temp default") == Show("temp 0.7")
    assert obey(place, "/set top-p 0.9") == Show("top-p 0.9")
    assert obey(place, "/set TOP_P") == Show(
        "top-p 0.9 (from /set top-p)\nNucleus; 1 is off. It takes a number above 0 to 1, or default."
    )
    assert place.session.controls.stop == ("The End",)


def test_save_may_write_its_own_file_again(tmp_path: Path) -> None:
    place = desk()
    list(replying(place.session, place.session.ask("hello")))
    path = tmp_path / "a talk.md"
    assert obey(place, f"/save {path}") == Show(f"saved to {path}")
    list(replying(place.session, place.session.ask("more")))
    obey(place, f"/save {path}")
    assert "more" in path.read_text()
    with pytest.raises(UsageError, match="exists already"):
        obey(desk(place.session), f"/save {path}")


@pytest.mark.parametrize("typed", ["/quit", "/exit", "/bye", "/q", "/EXIT"])
def test_quit(typed: str) -> None:
    assert obey(desk(), typed) == Quit()


@pytest.mark.parametrize("text", ["/drop {}", "/summarise {}", "/undo {}", "/edit {}", "/edit --reply {}"])
def test_a_number_of_any_length_is_no_failure(text: str) -> None:
    place = desk()
    for event in replying(place.session, place.session.ask("hello"), lambda: False):
        assert event
    try:
        obey(place, text.format("9" * 5000))
    except UsageError:
        return
    assert text.startswith("/edit")


def test_a_slash_alone_asks_for_a_name() -> None:
    with pytest.raises(UsageError, match=r"^a command needs a name: /help lists them \(// sends a slash\)$"):
        parse(" / ")
    assert parse("//") is None
    assert message_text("//") == "/"
    assert parse("/ and more") is None
