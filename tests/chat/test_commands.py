"""The chat's commands: what counts as one, what each returns."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.chat.commands import COMMANDS, Desk, Outcome, Quit, Retry, Show, message_text, parse
from qwchat.chat.controls import Controls
from qwchat.chat.session import Session
from qwchat.errors import UsageError
from qwchat.sampling import SamplingSettings
from tests.chat.fakes import FakeModel

HELP = """\
/help              this list
/clear             forget the conversation
/system TEXT       show or set the system prompt (none: without)
/set NAME VALUE    show or change a setting (default: back to the start)
/retry             answer the last question again
/save FILE         write the conversation as Markdown, or as .json
/quit              leave

Settings: temp, top-p, top-k, min-p, repeat-penalty, presence-penalty, frequency-penalty, seed, max-tokens, stop, \
speculate
Enter              send
Alt-Enter, Ctrl-J  break the line
Ctrl-C             stop a reply and keep what was said
Ctrl-D             leave"""


def desk() -> Desk:
    return Desk(Session(FakeModel(), Controls(SamplingSettings(temperature=0.7))), "mini")


def obey(place: Desk, text: str) -> Outcome:
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
    assert obey(desk(), text) == Show("the conversation is forgotten")


def test_help_is_this_text() -> None:
    assert obey(desk(), "/help") == Show(HELP)
    assert obey(desk(), "/help save") == Show("/save FILE  write the conversation as Markdown, or as .json")
    assert all(f"/{command.name}" in HELP for command in COMMANDS)


def test_system_prompts_come_and_go() -> None:
    place = desk()
    assert obey(place, "/system") == Show("no system prompt is set")
    obey(place, "/system Speak\nin verse.")
    assert place.session.system == "Speak\nin verse."
    assert obey(place, "/system") == Show("Speak\nin verse.")
    obey(place, "/system none")
    assert place.session.messages == []


def test_set_shows_everything_and_changes_one_thing() -> None:
    place = desk()
    shown = obey(place, "/set")
    assert isinstance(shown, Show)
    assert shown.text.splitlines()[0] == "temp               0.7"
    assert obey(place, "/set temp 0.2") == Show("temp 0.2")
    assert obey(place, "/set stop The End") == Show("stop 'The End'")
    assert obey(place, "/set temp default") == Show("temp 0.7")
    assert place.session.controls.stop == ("The End",)


def test_save_may_write_its_own_file_again(tmp_path: Path) -> None:
    place = desk()
    list(place.session.ask("hello"))
    path = tmp_path / "a talk.md"
    assert obey(place, f"/save {path}") == Show(f"saved to {path}")
    list(place.session.ask("more"))
    obey(place, f"/save {path}")
    assert "more" in path.read_text()
    with pytest.raises(UsageError, match="exists already"):
        obey(Desk(place.session, "mini"), f"/save {path}")


def test_retry_and_quit() -> None:
    assert obey(desk(), "/retry") == Retry()
    assert obey(desk(), "/quit") == Quit()
