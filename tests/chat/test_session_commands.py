"""The commands about sessions and files: what they say, write and change."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path

import pytest

from qwchat.chat.commands import CommandContext, Show, parse, suggestions
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.session_recorder import SessionRecorder
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.conversation.store import Store
from qwchat.errors import SessionError, UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying


@pytest.fixture
def desk(tmp_path: Path) -> CommandContext:
    """A chat that is saved below `tmp_path`."""
    saved = SessionRecorder(Store(tmp_path / "sessions"))
    saved.answers("mini", "0123abcd")
    model = FakeModel()
    session = Session(
        model, ReplySettings(SamplingParams(temperature=0.7)), tree=saved.tree, fingerprint=model.folder.fingerprint
    )
    return CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN), saved=saved)


def obey(desk: CommandContext, text: str) -> str:
    command = parse(text)
    assert command is not None
    outcome = command[0].run(desk, command[1])
    assert isinstance(outcome, Show)
    return format_answer(outcome.above, outcome.text)


def ask(desk: CommandContext, question: str) -> None:
    for _ in replying(desk.session, desk.session.ask(question)):
        pass


def said(desk: CommandContext, session: str) -> list[str]:
    assert desk.saved.store is not None
    return [node.content for node in desk.saved.store.read(session).tree.path()]


def current(desk: CommandContext) -> str:
    assert desk.saved.id is not None
    return desk.saved.id


def test_save_chooses_the_form_by_the_name(desk: CommandContext, tmp_path: Path) -> None:
    ask(desk, "Name a sea.")
    for name in ("talk.md", "talk.html", "talk.json"):
        assert obey(desk, f"/save {tmp_path}/{name}") == f"saved to {tmp_path}/{name}"
    assert (tmp_path / "talk.md").read_text() == (
        "# Name a sea.\n\n## You\n\nName a sea.\n\n## mini\n\necho: Name a sea.\n"
    )
    assert (tmp_path / "talk.html").read_text().startswith("<!DOCTYPE html>")
    document = json.loads((tmp_path / "talk.json").read_text())
    assert document["id"] == current(desk)
    assert document["created"] == desk.saved.created
    assert document["messages"][1]["content"] == "echo: Name a sea."
    assert document["settings"]["temperature"] == 0.7


def test_export_names_the_file_after_the_title(
    desk: CommandContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask(desk, "Name a sea.")
    assert obey(desk, "/export html") == "saved to name-a-sea.html"
    assert obey(desk, "/export JSON x.txt") == "saved to x.txt"
    assert json.loads(Path("x.txt").read_text())["title"] == "Name a sea."
    Path("name-a-sea.md").write_text("precious")
    with pytest.raises(UsageError, match=r"name-a-sea\.md exists already: choose another name"):
        obey(desk, "/export md")
    assert Path("name-a-sea.md").read_text() == "precious"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("/export pdf", "/export takes md, html or json, not 'pdf'"),
        ("/export", "/export md, html or json?"),
        ("/save", "/save needs the name of a file, as in /save talk.md"),
        ("/export md", "nothing was said yet, so there is nothing to save"),
        ("/fork", "nothing was said yet, so there is nothing to fork"),
        ("/resume", "/resume needs a session, as in /resume seas: /sessions lists them"),
        ("/resume x", "there is no session 'x': qwchat sessions list shows those there are"),
        ("/title \x07", "a title needs a letter or another character that can be seen"),
        ("/new a/b", "a session cannot be called 'a/b': use letters, digits, blanks, dots and dashes, 64 at most"),
    ],
)
def test_what_cannot_be_done(desk: CommandContext, command: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        obey(desk, command)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x.md", "a\0b.md", f"{'x' * 300}.md", "loop"])
@pytest.mark.parametrize("command", ["/save", "/export md", "/write"])
def test_names_that_no_file_can_have_are_refused(
    desk: CommandContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    ask(desk, "Code:\n```\nx\n```")
    with pytest.raises(UsageError, match=r"cannot write|exists already"):
        obey(desk, f"{command} {name}")
    assert [path.name for path in tmp_path.iterdir() if not path.is_dir()] == ["loop"]


def test_a_title_is_made_shown_and_changed(desk: CommandContext) -> None:
    assert obey(desk, "/title") == "Conversation with mini"
    ask(desk, "Name a sea.")
    assert obey(desk, "/title") == "Name a sea."
    assert obey(desk, "/title  Sea\x1b[2J talk") == "the session is called Sea[2J talk"
    assert Store(desk.saved.store.folder if desk.saved.store else None).find("sea[2J").id == current(desk)


def test_sessions_are_listed_and_searched(desk: CommandContext) -> None:
    assert obey(desk, "/sessions") == "there are no sessions yet"
    ask(desk, "Name a sea.")
    first = current(desk)
    assert desk.saved.store is not None
    os.utime(desk.saved.store.folder / first / "session.jsonl", (1.7e9, 1.7e9))  # Not in the same tick as the next.
    assert obey(desk, "/new lakes") == "a new session begins with the next message"
    ask(desk, "Name a lake.")
    lines = obey(desk, "/sessions").splitlines()
    assert re.fullmatch(r" +id +last said +messages  title", lines[0])
    assert re.fullmatch(rf"\*  {current(desk)}  20.*  2  lakes · Name a lake\.", lines[1])
    assert re.fullmatch(rf"   {first}  20.*  2  Name a sea\.", lines[2])
    assert len(obey(desk, "/sessions SEA").splitlines()) == 2
    assert obey(desk, "/sessions river") == "no session has 'river' in its title"


def test_a_long_list_is_cut(desk: CommandContext) -> None:
    for number in range(17):
        obey(desk, "/new")
        ask(desk, f"Question {number}")
    assert obey(desk, "/sessions").splitlines()[-1] == "and 2 more: qwchat sessions list"


def test_resume_leaves_one_session_and_goes_on_with_another(desk: CommandContext) -> None:
    ask(desk, "Name a sea.")
    first = current(desk)
    obey(desk, "/new")
    ask(desk, "Name a lake.")
    second = current(desk)
    assert obey(desk, "/resume sea") == f"{first} (Name a sea.) goes on, 2 messages"
    ask(desk, "Another.")
    assert said(desk, first) == ["Name a sea.", "echo: Name a sea.", "Another.", "echo: Another."]
    assert said(desk, second) == ["Name a lake.", "echo: Name a lake."]
    assert obey(desk, f"/resume {first}") == "this session is the one that goes on here"


def test_resume_says_where_another_model_replied(desk: CommandContext) -> None:
    ask(desk, "Name a sea.")
    obey(desk, "/new")
    desk.saved.answers("big", "89ef")
    assert obey(desk, "/resume sea").splitlines()[1] == (
        "the last reply was another model's (mini): big reads the conversation anew"
    )


def test_a_session_that_is_open_elsewhere_stays_there(desk: CommandContext) -> None:
    ask(desk, "Name a sea.")
    first = current(desk)
    obey(desk, "/new")
    ask(desk, "Name a lake.")
    assert desk.saved.store is not None
    file, _ = desk.saved.store.open(first)
    with pytest.raises(SessionError, match=f"session {first} is open in another qwchat"):
        obey(desk, "/resume sea")
    file.close()
    ask(desk, "Go on.")
    assert said(desk, current(desk))[2:] == ["Go on.", "echo: Go on."]


def test_a_fork_goes_on_beside_the_original(desk: CommandContext) -> None:
    desk.session.system = "Be brief."
    ask(desk, "one")
    first = current(desk)
    assert obey(desk, "/fork other") == "a copy of the conversation goes on here, as session other"
    assert desk.saved.store is not None
    assert desk.saved.store.find("other").id == current(desk)
    ask(desk, "two")
    assert said(desk, first) == ["one", "echo: one"]
    assert said(desk, current(desk)) == ["one", "echo: one", "two", "echo: two"]
    assert desk.session.system == "Be brief."


def test_a_fork_without_a_name_is_called_by_its_id(desk: CommandContext) -> None:
    ask(desk, "one")
    first = current(desk)
    answer = obey(desk, "/fork")
    assert current(desk) != first
    assert answer == f"a copy of the conversation goes on here, as session {current(desk)}"


def test_names_are_given_once(desk: CommandContext) -> None:
    obey(desk, "/new lakes")
    ask(desk, "one")
    for command in ("/new lakes", "/fork lakes"):
        with pytest.raises(UsageError, match="there is a session lakes already: /resume lakes goes on with it"):
            obey(desk, command)
    assert said(desk, current(desk)) == ["one", "echo: one"]


def test_new_keeps_the_system_prompt(desk: CommandContext) -> None:
    desk.session.system = "Be brief."
    ask(desk, "one")
    obey(desk, "/new")
    assert desk.session.turns == []
    assert desk.session.system == "Be brief."


def test_without_saving_everything_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_SESSIONS", str(tmp_path / "sessions"))
    model = FakeModel()
    saved = SessionRecorder()
    session = Session(model, ReplySettings(SamplingParams()), tree=saved.tree)
    desk = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN), saved=saved)
    ask(desk, "one")
    assert obey(desk, "/fork") == "a copy of the conversation goes on here"
    obey(desk, "/new")
    assert obey(desk, "/sessions") == "there are no sessions yet"
    assert not (tmp_path / "sessions").exists()


def test_sessions_and_forms_are_suggested(desk: CommandContext) -> None:
    ask(desk, "Name a sea.")
    first = current(desk)
    obey(desk, "/new lakes")
    ask(desk, "Name a lake.")
    assert [(s.text, s.note) for s in suggestions(desk, "/resume ")] == [(first, "Name a sea.")]
    assert [s.text for s in suggestions(desk, "/export h")] == ["html"]
