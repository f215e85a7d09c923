"""Commands for sessions and files: what they print, write and change."""

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
from qwchat.conversation.session_store import SessionStore
from qwchat.errors import SessionError, UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from tests.chat.fakes import FakeModel, replying


@pytest.fixture
def context(tmp_path: Path) -> CommandContext:
    """Return the context of a chat that is saved below `tmp_path`."""
    recorder = SessionRecorder(SessionStore(tmp_path / "sessions"))
    recorder.set_model("mini", "0123abcd")
    model = FakeModel()
    session = Session(
        model, ReplySettings(SamplingParams(temperature=0.7)), tree=recorder.tree, fingerprint=model.folder.fingerprint
    )
    return CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN), recorder=recorder)


def run_command(context: CommandContext, text: str) -> str:
    command = parse(text)
    assert command is not None
    outcome = command[0].run(context, command[1])
    assert isinstance(outcome, Show)
    return format_answer(outcome.table, outcome.text)


def ask(context: CommandContext, question: str) -> None:
    for _ in replying(context.session, context.session.ask(question)):
        pass


def turn_texts(context: CommandContext, session: str) -> list[str]:
    assert context.recorder.store is not None
    return [node.content for node in context.recorder.store.read(session).tree.path()]


def current(context: CommandContext) -> str:
    assert context.recorder.id is not None
    return context.recorder.id


def test_save_chooses_the_format_by_the_file_name(context: CommandContext, tmp_path: Path) -> None:
    ask(context, "Name a sea.")
    for name in ("talk.md", "talk.html", "talk.json"):
        assert run_command(context, f"/save {tmp_path}/{name}") == f"saved to {tmp_path}/{name}"
    assert (tmp_path / "talk.md").read_text() == (
        "# Name a sea.\n\n## You\n\nName a sea.\n\n## mini\n\necho: Name a sea.\n"
    )
    assert (tmp_path / "talk.html").read_text().startswith("<!DOCTYPE html>")
    document = json.loads((tmp_path / "talk.json").read_text())
    assert document["id"] == current(context)
    assert document["created"] == context.recorder.created
    assert document["messages"][1]["content"] == "echo: Name a sea."
    assert document["settings"]["temperature"] == 0.7


def test_export_names_the_file_after_the_title(
    context: CommandContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask(context, "Name a sea.")
    assert run_command(context, "/export html") == "saved to name-a-sea.html"
    assert run_command(context, "/export JSON x.txt") == "saved to x.txt"
    assert json.loads(Path("x.txt").read_text())["title"] == "Name a sea."
    Path("name-a-sea.md").write_text("precious")
    with pytest.raises(UsageError, match=r"name-a-sea\.md already exists: choose another name"):
        run_command(context, "/export md")
    assert Path("name-a-sea.md").read_text() == "precious"


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("/export pdf", "/export takes md, html or json, not 'pdf'"),
        ("/export", "/export needs a format: md, html or json"),
        ("/save", "/save needs a file name, for example /save talk.md"),
        ("/export md", "the conversation is empty, so there is nothing to save"),
        ("/fork", "the conversation is empty, so there is nothing to fork"),
        ("/resume", "/resume needs a session, for example /resume seas: /sessions lists them"),
        ("/resume x", "there is no session 'x': qwchat sessions list shows all sessions"),
        ("/title \x07", "a title needs at least one visible character"),
        ("/new a/b", "'a/b' is not a session name: use up to 64 letters, digits, spaces, dots and dashes"),
    ],
)
def test_what_cannot_be_done(context: CommandContext, command: str, complaint: str) -> None:
    with pytest.raises(UsageError) as caught:
        run_command(context, command)
    assert str(caught.value) == complaint


@pytest.mark.parametrize("name", ["~no-user-of-that-name/x.md", "a\0b.md", f"{'x' * 300}.md", "loop"])
@pytest.mark.parametrize("command", ["/save", "/export md", "/write"])
def test_impossible_file_names_are_refused(
    context: CommandContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    ask(context, "Code:\n```\nx\n```")
    with pytest.raises(UsageError, match=r"cannot write|already exists"):
        run_command(context, f"{command} {name}")
    assert [path.name for path in tmp_path.iterdir() if not path.is_dir()] == ["loop"]


def test_a_title_is_derived_shown_and_changed(context: CommandContext) -> None:
    assert run_command(context, "/title") == "Conversation with mini"
    ask(context, "Name a sea.")
    assert run_command(context, "/title") == "Name a sea."
    assert run_command(context, "/title  Sea\x1b[2J talk") == "the title is now: Sea[2J talk"
    assert SessionStore(context.recorder.store.folder if context.recorder.store else None).find("sea[2J").id == current(
        context
    )


def test_sessions_are_listed_and_searched(context: CommandContext) -> None:
    assert run_command(context, "/sessions") == "there are no sessions yet"
    ask(context, "Name a sea.")
    first = current(context)
    assert context.recorder.store is not None
    os.utime(
        context.recorder.store.folder / first / "session.jsonl", (1.7e9, 1.7e9)
    )  # Gives it another time than the next session.
    assert run_command(context, "/new lakes") == "the next message starts a new session"
    ask(context, "Name a lake.")
    lines = run_command(context, "/sessions").splitlines()
    assert re.fullmatch(r" +id +last used +messages  title", lines[0])
    assert re.fullmatch(rf"\*  {current(context)}  20.*  2  lakes · Name a lake\.", lines[1])
    assert re.fullmatch(rf"   {first}  20.*  2  Name a sea\.", lines[2])
    assert len(run_command(context, "/sessions SEA").splitlines()) == 2
    assert run_command(context, "/sessions river") == "no session has 'river' in its title"


def test_a_long_list_is_cut(context: CommandContext) -> None:
    for number in range(17):
        run_command(context, "/new")
        ask(context, f"Question {number}")
    assert run_command(context, "/sessions").splitlines()[-1] == "and 2 more: qwchat sessions list shows all"


def test_resume_leaves_one_session_and_goes_on_with_another(context: CommandContext) -> None:
    ask(context, "Name a sea.")
    first = current(context)
    run_command(context, "/new")
    ask(context, "Name a lake.")
    second = current(context)
    assert run_command(context, "/resume sea") == f"resumed {first} (Name a sea.), 2 messages"
    ask(context, "Another.")
    assert turn_texts(context, first) == ["Name a sea.", "echo: Name a sea.", "Another.", "echo: Another."]
    assert turn_texts(context, second) == ["Name a lake.", "echo: Name a lake."]
    assert run_command(context, f"/resume {first}") == "this session is already open here"


def test_resume_warns_if_another_model_replied(context: CommandContext) -> None:
    ask(context, "Name a sea.")
    run_command(context, "/new")
    context.recorder.set_model("big", "89ef")
    assert run_command(context, "/resume sea").splitlines()[1] == (
        "the last reply came from another model (mini): big evaluates the conversation again"
    )


def test_a_session_open_elsewhere_is_not_resumed(context: CommandContext) -> None:
    ask(context, "Name a sea.")
    first = current(context)
    run_command(context, "/new")
    ask(context, "Name a lake.")
    assert context.recorder.store is not None
    file, _ = context.recorder.store.open(first)
    with pytest.raises(SessionError, match=f"session {first} is open in another qwchat"):
        run_command(context, "/resume sea")
    file.close()
    ask(context, "Go on.")
    assert turn_texts(context, current(context))[2:] == ["Go on.", "echo: Go on."]


def test_a_fork_continues_beside_the_original(context: CommandContext) -> None:
    context.session.system = "Be brief."
    ask(context, "one")
    first = current(context)
    assert run_command(context, "/fork other") == "continuing in a copy of the conversation, session other"
    assert context.recorder.store is not None
    assert context.recorder.store.find("other").id == current(context)
    ask(context, "two")
    assert turn_texts(context, first) == ["one", "echo: one"]
    assert turn_texts(context, current(context)) == ["one", "echo: one", "two", "echo: two"]
    assert context.session.system == "Be brief."


def test_a_fork_without_a_name_is_called_by_its_id(context: CommandContext) -> None:
    ask(context, "one")
    first = current(context)
    answer = run_command(context, "/fork")
    assert current(context) != first
    assert answer == f"continuing in a copy of the conversation, session {current(context)}"


def test_session_names_are_unique(context: CommandContext) -> None:
    run_command(context, "/new lakes")
    ask(context, "one")
    for command in ("/new lakes", "/fork lakes"):
        with pytest.raises(UsageError, match="session lakes already exists: /resume lakes continues it"):
            run_command(context, command)
    assert turn_texts(context, current(context)) == ["one", "echo: one"]


def test_new_keeps_the_system_prompt(context: CommandContext) -> None:
    context.session.system = "Be brief."
    ask(context, "one")
    run_command(context, "/new")
    assert context.session.turns == []
    assert context.session.system == "Be brief."


def test_without_saving_everything_else_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QWCHAT_SESSIONS", str(tmp_path / "sessions"))
    model = FakeModel()
    recorder = SessionRecorder()
    session = Session(model, ReplySettings(SamplingParams()), tree=recorder.tree)
    context = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN), recorder=recorder)
    ask(context, "one")
    assert run_command(context, "/fork") == "continuing in a copy of the conversation"
    run_command(context, "/new")
    assert run_command(context, "/sessions") == "there are no sessions yet"
    assert not (tmp_path / "sessions").exists()


def test_sessions_and_forms_are_suggested(context: CommandContext) -> None:
    ask(context, "Name a sea.")
    first = current(context)
    run_command(context, "/new lakes")
    ask(context, "Name a lake.")
    assert [(s.text, s.note) for s in suggestions(context, "/resume ")] == [(first, "Name a sea.")]
    assert [s.text for s in suggestions(context, "/export h")] == ["html"]
