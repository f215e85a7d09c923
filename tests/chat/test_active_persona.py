"""Personas in the chat: apply, replace, remove and save."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from qwchat.chat.active_persona import ActivePersona
from qwchat.chat.advice import error_message
from qwchat.chat.commands import CommandContext, Show, parse, suggestions
from qwchat.chat.formatting import one_line
from qwchat.chat.reply_settings import ReplySettings
from qwchat.chat.session import Session
from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.table import format_answer
from qwchat.errors import UsageError
from qwchat.markdown.styles import PLAIN
from qwchat.request import SamplingParams
from qwchat.settings import personas
from qwchat.settings.resolve import resolve
from tests.chat.fakes import FakeModel, replying

POET = "description = 'Speaks in verse'\nsystem = 'A poet of {place}.'\ntemp = 1.2\nstop = ['END', 'FIN']\n"
CLERK = "temp = 0.0\ntop-k = 3\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Create a folder with two personas."""
    monkeypatch.setenv("QWCHAT_CONFIG", str(tmp_path))
    folder = tmp_path / "personas"
    folder.mkdir()
    (folder / "poet.toml").write_text(POET)
    (folder / "clerk.toml").write_text(CLERK)
    return folder


def make_context(model: FakeModel | None = None) -> CommandContext:
    session = Session(model or FakeModel(), ReplySettings(SamplingParams(temperature=0.7)), "Be brief.")
    return CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))


def shown(context: CommandContext, text: str) -> str:
    command = parse(text)
    assert command is not None
    outcome = command[0].run(context, command[1])
    assert isinstance(outcome, Show)
    return format_answer(outcome.table, outcome.text)


def state(context: CommandContext) -> tuple[object, ...]:
    session = context.session
    return (session.system, *(session.reply_settings[name] for name in ("temp", "top-k", "stop")))


def test_a_persona_is_applied_replaced_and_removed() -> None:
    context = make_context()
    assert (
        shown(context, '/as poet place="New York"') == "applied persona poet: system prompt, temp 1.2, stop 'END' 'FIN'"
    )
    assert state(context) == ("A poet of New York.", 1.2, 0, ("END", "FIN"))
    assert context.session.reply_settings.origin("temp") == "persona poet"
    assert shown(context, "/as clerk") == "applied persona clerk: temp 0, top-k 3"
    assert state(context) == ("Be brief.", 0.0, 3, ())
    assert shown(context, "/as none") == "removed the persona"
    assert state(context) == ("Be brief.", 0.7, 0, ())
    assert shown(context, "/as none") == "no persona is active"


def test_a_persona_with_a_server_says_how_to_switch(folder: Path) -> None:
    (folder / "work.toml").write_text('endpoint = "https://a.org"\nmodel = "big"\ntemp = 0.5\n')
    context = make_context()
    command = parse("/as work")
    assert command is not None
    assert command[0].run(context, command[1]) == Show(
        "applied persona work: temp 0.5", hint="the model stays; that of the persona: /model https://a.org/v1 big"
    )
    assert state(context) == ("Be brief.", 0.5, 0, ())


def test_later_changes_outlive_the_persona() -> None:
    context = make_context()
    shown(context, "/as poet place=Rome")
    shown(context, "/set temp 0.3")
    shown(context, "/system Mine.")
    shown(context, "/as none")
    assert state(context) == ("Mine.", 0.3, 0, ())


def test_a_chat_started_with_a_persona_can_remove_it() -> None:
    with_persona = resolve({"as": "poet", "top-k": "9"}, variables={"place": "Rome"})
    without = resolve({"as": "none", "top-k": "9"})
    defaults = SamplingParams(temperature=0.5)
    session = Session(FakeModel(), ReplySettings.from_settings(with_persona, defaults), with_persona["system"])
    context = CommandContext(session, "mini", ReplyView(io.StringIO(), PLAIN))
    bare = ReplySettings.from_settings(without, defaults)
    context.persona = ActivePersona(session, bare, without["system"], with_persona["as"], with_persona["system"])
    assert state(context) == ("A poet of Rome.", 1.2, 9, ("END", "FIN"))
    shown(context, "/as none")
    assert state(context) == (None, 0.5, 9, ())
    assert session.reply_settings.origin("temp") == "the model's generation_config.json"


def test_an_error_changes_nothing() -> None:
    context = make_context()
    shown(context, "/as clerk")
    for text, complaint in (
        ("/as poet", "persona poet needs place: use /as poet place=…"),
        ("/as peot", "there is no persona 'peot': did you mean poet?"),
        ("/as poet place", "give a variable as name=value, not 'place'"),
        ("/as poet place='x", 'the closing quote is missing in "poet place=\'x"'),
        (
            "/as ../poet",
            "'../poet' is not a valid persona name: use up to 200 letters, digits, dots, dashes and underscores",
        ),
    ):
        with pytest.raises(UsageError) as error:
            shown(context, text)
        assert error_message(error.value) == complaint
    assert context.persona.active == "clerk"
    assert state(context) == ("Be brief.", 0.0, 3, ())


def test_a_new_system_prompt_says_what_it_costs() -> None:
    model = FakeModel()
    context = make_context(model)
    list(replying(context.session, context.session.ask("one two three")))
    assert shown(context, "/as clerk") == "applied persona clerk: temp 0, top-k 3"
    text = shown(context, "/as poet place=Rome")
    assert text.endswith(f"'FIN'; {model.count(context.session.messages)} tokens will be evaluated again")


def test_personas_are_listed_and_suggested(folder: Path) -> None:
    context = make_context()
    shown(context, "/as clerk")
    (folder / "bad.toml").write_text("temp = 9")
    assert shown(context, "/as") == (
        "persona          description\n"
        f"bad              {one_line(f'{folder}/bad.toml:1: temp must be from 0 to 5, not 9', 100)}\n"
        "clerk    active\n"
        "poet             Speaks in verse"
    )
    assert [found.text for found in suggestions(context, "/as p")] == ["poet"]
    assert [found.text for found in suggestions(context, "/as poet p")] == ["place="]
    assert list(suggestions(context, "/as poet place=Rome ")) == list(suggestions(context, "/as stranger ")) == []
    for path in folder.iterdir():
        path.unlink()
    assert shown(context, "/as") == (
        "there are no personas yet: save the system prompt and settings of this chat with /save-persona NAME, "
        f"or create NAME.toml in {folder}"
    )


def test_settings_can_be_saved_as_a_persona(folder: Path) -> None:
    context = make_context()
    shown(context, "/system Answer in {braces}\nand lines.")
    shown(context, "/set top-p 0.9")
    shown(context, "/set seed 5")
    shown(context, '/set stop ["a", "b"]')
    path = folder / "mine.toml"
    assert shown(context, "/save-persona mine") == f"saved to {path}: /as mine applies it, in other chats too"
    assert path.read_text() == ('system = """Answer in {{braces}}\nand lines."""\ntop-p = 0.9\nstop = ["a", "b"]\n')
    assert personas.read("mine").fill_variables({}) == {
        "system": "Answer in {braces}\nand lines.",
        "top-p": 0.9,
        "stop": ("a", "b"),
    }
    shown(context, "/set top-p 0.8")
    shown(context, "/save-persona mine")
    assert "top-p = 0.8" in path.read_text()
    for text, complaint in (
        ("/save-persona", "/save-persona needs a name, for example /save-persona poet"),
        ("/save-persona poet", f"{folder}/poet.toml already exists: choose another name"),
        (
            "/save-persona a/b",
            "'a/b' is not a valid persona name: use up to 200 letters, digits, dots, dashes and underscores",
        ),
    ):
        with pytest.raises(UsageError) as error:
            shown(context, text)
        assert str(error.value) == complaint
    with pytest.raises(UsageError, match=r"^there is nothing to save: set a system prompt with /system"):
        ActivePersona(Session(FakeModel(), ReplySettings(SamplingParams()))).save("empty", overwrite=False)
