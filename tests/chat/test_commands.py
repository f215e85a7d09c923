"""Chat commands: what counts as a command, and what each returns."""

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


def make_context(session: Session | None = None) -> CommandContext:
    session = session or Session(FakeModel(), ReplySettings(SamplingParams(temperature=0.7)))
    return CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))


def run_command(context: CommandContext, text: str) -> Outcome:
    command = parse(text)
    assert command is not None
    return command[0].run(context, command[1])


@pytest.mark.parametrize(
    "text",
    ["hello", "//clear", "/usr/bin/env", "/ 2", "what is /help?", "/etc", "/foo\nbar", "</s>", "/é"],
)
def test_what_is_a_message(text: str) -> None:
    if text == "/etc":
        with pytest.raises(UsageError, match=r"there is no command /etc: .*start with //"):
            parse(text)
    else:
        assert parse(text) is None


def test_two_slashes_send_one() -> None:
    assert message_text("//clear") == "/clear"
    assert message_text("/usr/bin") == "/usr/bin"


@pytest.mark.parametrize("text", ["/CLEAR", " /clear ", "/clear\n"])
def test_how_a_command_may_be_typed(text: str) -> None:
    assert run_command(make_context(), text) == Show("the conversation is already empty")


def test_help_lists_every_command_and_explains_one() -> None:
    shown = run_command(make_context(), "/help")
    assert isinstance(shown, Show)
    for command in COMMANDS:
        assert re.search(rf"^  {re.escape(command.usage)} +{re.escape(command.summary)}$", shown.text, re.MULTILINE)
    assert run_command(make_context(), "/help save") == Show(
        "/save FILE  write the conversation to a file (.md, .html or .json)\n\n"
        "It writes the conversation without alternatives, and overwrites only files that this chat wrote."
    )
    for elsewhere, here in (("leave", "quit"), ("forget", "undo"), ("regen", "retry"), ("load", "resume")):
        with pytest.raises(UsageError, match=rf"there is no command /{elsewhere}: did you mean /{here}\?"):
            run_command(make_context(), f"/{elsewhere}")
    with pytest.raises(UsageError, match=r"there is no command /sav: did you mean /save\?"):
        run_command(make_context(), "/help sav")


def test_completions_are_suggested(tmp_path: Path) -> None:
    (tmp_path / "talk.md").touch()
    (tmp_path / "talks").mkdir()
    context = make_context()
    assert [(s.text, s.replaced) for s in suggestions(context, "/re")][:1] == [("/retry", 3)]
    assert [(s.text, s.replaced, s.note) for s in suggestions(context, "/set top-p")] == [("top-p", 5, "1")]
    assert [(s.text, s.replaced, s.note) for s in suggestions(context, "/set speculate o")] == [
        ("on", 1, ""),
        ("off", 1, ""),
    ]
    assert [(s.text, s.note) for s in suggestions(context, "/set seed d")] == [
        ("default", "a whole number from 0 to 18446744073709551615, or random"),
        ("random", ""),
    ]
    assert list(suggestions(context, "/set nothing x")) == []
    assert [s.text for s in suggestions(context, f"/save {tmp_path}/ta")] == ["talk.md", "talks/"]
    assert list(suggestions(context, "hello /re")) == []


def test_system_prompts_come_and_go() -> None:
    context = make_context()
    assert run_command(context, "/system") == Show("no system prompt is set")
    run_command(context, "/system Speak\nin verse.")
    assert context.session.system == "Speak\nin verse."
    assert run_command(context, "/system") == Show(message="Speak\nin verse.")
    run_command(context, "/system none")
    assert context.session.messages == []


def test_set_shows_everything_and_changes_one_thing() -> None:
    context = make_context()
    shown = run_command(context, "/set")
    assert isinstance(shown, Show)
    assert format_answer(shown.table, shown.text).splitlines()[:2] == [
        "setting            value   from",
        "temp               0.7     built in",
    ]
    assert run_command(context, "/set temp 0.2") == Show("temp 0.2")
    assert run_command(context, "/set stop The End") == Show("stop 'The End'")
    assert run_command(context, "/set temp default") == Show("temp 0.7")
    assert run_command(context, "/set top-p 0.9") == Show("top-p 0.9")
    assert run_command(context, "/set TOP_P") == Show(
        "top-p 0.9 (/set top-p)\n"
        "Nucleus sampling: probability mass (1 = off). Values: a number above 0 to 1, or default."
    )
    assert context.session.reply_settings.stop == ("The End",)


def test_save_may_write_its_own_file_again(tmp_path: Path) -> None:
    context = make_context()
    list(replying(context.session, context.session.ask("hello")))
    path = tmp_path / "a talk.md"
    assert run_command(context, f"/save {path}") == Show(f"saved to {path}")
    list(replying(context.session, context.session.ask("more")))
    run_command(context, f"/save {path}")
    assert "more" in path.read_text()
    with pytest.raises(UsageError, match="already exists"):
        run_command(make_context(context.session), f"/save {path}")


@pytest.mark.parametrize("typed", ["/quit", "/exit", "/bye", "/q", "/EXIT"])
def test_quit(typed: str) -> None:
    assert run_command(make_context(), typed) == Quit()


@pytest.mark.parametrize("text", ["/drop {}", "/summarise {}", "/undo {}", "/edit {}", "/edit --reply {}"])
def test_numbers_of_any_length_are_handled(text: str) -> None:
    context = make_context()
    for event in replying(context.session, context.session.ask("hello"), lambda: False):
        assert event
    try:
        run_command(context, text.format("9" * 5000))
    except UsageError:
        return
    assert text.startswith("/edit")


def test_a_slash_alone_asks_for_a_name() -> None:
    with pytest.raises(
        UsageError, match=r"^the command name is missing: /help lists the commands \(type // to send a slash\)$"
    ):
        parse(" / ")
    assert parse("//") is None
    assert message_text("//") == "/"
    assert parse("/ and more") is None
