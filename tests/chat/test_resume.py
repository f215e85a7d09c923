"""Saved sessions on the command line: create, resume, choose and refuse, with and without a pseudo-terminal."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
from pathlib import Path

import pytest

from qwchat.conversation.session_store import SessionEntry, SessionStore
from qwchat.conversation.tree import Tree
from tests.chat.pty import Terminal
from tests.cli.runs import call, environment

FIGURES = re.compile(r"^\d.* m?s to first token .*$", re.MULTILINE)


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "home" / "sessions")


def save(
    store: SessionStore, *contents: str, name: str = "", title: str | None = None, model: str = "mini"
) -> SessionEntry:
    """Save a session of the scripted model."""
    file = store.create(model, "0123abcd", name)
    tree = Tree(lambda event: file.append([event]))
    for number, content in enumerate(contents):
        tree.add("assistant" if number % 2 else "user", content, model="0123abcd" if number % 2 else None)
    if title is not None:
        tree.set_title(title)
    file.close()
    return store.find(file.folder.name)


def turn_texts(store: SessionStore, entry: SessionEntry) -> list[str]:
    return [node.content for node in store.read(entry.id).tree.path()]


def run_chat(models: Path, *arguments: str, lines: str, **script: object) -> tuple[int, str, str]:
    """Run a chat that reads lines. Return its exit code, its output, and its errors without figures."""
    ran = call("chat", *arguments, models=models, stdin=lines.encode(), **script)
    return ran.returncode, ran.stdout.decode(), FIGURES.sub("", ran.stderr.decode())


def test_a_chat_is_saved_and_continued(tmp_path: Path, store: SessionStore) -> None:
    assert run_chat(tmp_path, lines="one\ntwo\n")[:2] == (0, "echo: one\necho: two\n")
    entry = store.latest()
    assert (entry.title, entry.model, entry.messages) == ("one", "mini", 4)
    code, out, err = run_chat(tmp_path, "--continue", lines="three\n")
    assert (code, out) == (0, "echo: three\n")
    assert f"qwchat: continuing session {entry.id}, 4 messages: one\n" in err
    assert turn_texts(store, entry) == ["one", "echo: one", "two", "echo: two", "three", "echo: three"]
    assert len(store.entries()) == 1
    settings = store.read(entry.id).tree.nodes[1].settings
    assert settings is not None
    assert settings["temperature"] == 0.0
    assert store.read(entry.id).tree.nodes[1].model == "0123abcd"


@pytest.mark.parametrize(("times", "code", "asked"), [(1, 0, ["one", "two"]), (2, 130, ["one"])])
def test_ctrl_c_while_a_turn_is_being_saved_neither_ends_the_chat_nor_loses_the_turn(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch, times: int, code: int, asked: list[str]
) -> None:
    real, pressed = os.fsync, iter([True])

    def slow(descriptor: int) -> None:
        replied = stat.S_ISREG(os.fstat(descriptor).st_mode) and b"echo: one" in os.pread(descriptor, 4096, 0)
        if replied and next(pressed, False):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    assert run_chat(tmp_path, lines="one\ntwo\n")[0] == code
    assert turn_texts(store, store.latest()) == [turn for question in asked for turn in (question, f"echo: {question}")]


def test_no_save_leaves_no_trace(tmp_path: Path, store: SessionStore) -> None:
    assert run_chat(tmp_path, "--no-save", lines="one\n")[0] == 0
    assert run_chat(tmp_path, lines="/title x\n/set temp 1\n")[0] == 0
    assert not store.folder.exists()
    entry = save(store, "one", "two")
    assert run_chat(tmp_path, "-c", "--no-save", lines="three\n")[0] == 0
    assert turn_texts(store, entry) == ["one", "two"]


def test_a_single_question_is_saved_only_in_a_session(tmp_path: Path, store: SessionStore) -> None:
    assert call("-p", "one", models=tmp_path).returncode == 0
    assert not store.folder.exists()
    answers = [
        json.loads(call("-p", text, "--session", "sums", "--json", models=tmp_path).stdout) for text in ("one", "two")
    ]
    entry = store.find("sums")
    assert turn_texts(store, entry) == ["one", "echo: one", "two", "echo: two"]
    assert [answer["session"] for answer in answers] == [entry.id, entry.id]
    assert "session" not in json.loads(call("-p", "x", "--json", models=tmp_path).stdout)
    ran = call("--resume", "sums", models=tmp_path, stdin=b"three")
    assert ran.stdout == b"echo: three\n"
    assert turn_texts(store, entry)[-1] == "echo: three"


def test_a_session_of_a_single_question_continues_in_the_chat(tmp_path: Path, store: SessionStore) -> None:
    call("-p", "one", "--session", "sums", models=tmp_path)
    with Terminal("chat", "--session", "sums", models=tmp_path) as terminal:
        terminal.prompt()
        entry = store.find("sums")
        shown = terminal.text.splitlines()
        assert shown[1:4] == [f"qwchat: continuing session {entry.id}, 2 messages: one", "> one", "echo: one"]
        terminal.type("two\r")
        terminal.wait("echo: two")
        terminal.prompt()
        refused = call("-p", "three", "--session", "sums", models=tmp_path)
        assert (refused.returncode, refused.stderr.decode()) == (
            1,
            f"qwchat: error: session {entry.id} is open in another qwchat: close it there, or choose another session\n",
        )
        terminal.type("/title Sums\r")
        terminal.wait("the title is now: Sums")
        terminal.type("\x04")
        assert terminal.end() == 0
    assert turn_texts(store, entry) == ["one", "echo: one", "two", "echo: two"]
    assert store.find("sums").title == "Sums"


def test_a_session_is_chosen_from_a_list_with_search(tmp_path: Path, store: SessionStore) -> None:
    for number in range(14):
        save(store, f"Lake {number}?", "Deep.")
    entry = save(store, "Name a sea.\nA big one.", "The **Pacific**.", title="Seas \x1b[2J")
    save(store, "River?", "Long.")
    with Terminal("chat", "--resume", models=tmp_path, variables={"TERM": "dumb"}) as terminal:
        terminal.wait("and 4 more", "type a number to choose, a word to search, Ctrl-D to leave")
        assert re.search(r"^ 1  20\d\d-\d\d-\d\d \d\d:\d\d  River\?$", terminal.text, re.MULTILINE)
        terminal.type("ocean\r")
        terminal.wait("no session has 'ocean' in its title")
        terminal.type("seas\r")
        terminal.wait("\n1  ")
        terminal.type("1\r")
        terminal.wait(f"qwchat: continuing session {entry.id}, 2 messages: Seas [2J")
        terminal.wait("> Name a sea. … (+1 line)\nThe **Pacific**.")


def test_a_session_is_chosen_on_the_screen(tmp_path: Path, store: SessionStore) -> None:
    sea = save(store, "Name a sea.", "The Pacific.")
    lake = save(store, "Name a lake.", "Garda.")
    with Terminal("chat", "--resume", models=tmp_path) as terminal:
        terminal.wait("Search:", "Name a lake.", "2 of 2")
        terminal.type("sea")
        terminal.wait("1 of 2")
        terminal.type("\r")
        terminal.wait(f"qwchat: continuing session {sea.id}, 2 messages: Name a sea.")
        terminal.prompt()
        assert "Search:" not in terminal.text
        terminal.type("/resume\r")
        terminal.wait("1 of 1")
        terminal.type("\x1b")
        terminal.wait("no session chosen; this one continues")
        terminal.prompt()
        terminal.type("/resume\r")
        terminal.wait("1 of 1")
        terminal.type("\r")
        terminal.wait(f"resumed {lake.id} (Name a lake.), 2 messages\n> Name a lake.\nGarda.")
        terminal.prompt()
        terminal.type("Another.\r")
        terminal.wait("echo: Another.")
        terminal.prompt()
    assert turn_texts(store, lake)[2:] == ["Another.", "echo: Another."]


def test_a_narrow_window_shows_the_titles(tmp_path: Path, store: SessionStore) -> None:
    save(store, "Name a sea.", "The Pacific.")
    with Terminal("chat", "--resume", models=tmp_path, columns=20, rows=12) as terminal:
        terminal.wait("> Name a sea.")


def test_a_session_keeps_its_settings_unless_others_are_given(tmp_path: Path, store: SessionStore) -> None:
    run_chat(tmp_path, "--temp", "0.5", "--top-k", "9", "--stop", "END", lines="one\n")
    _, _, err = run_chat(tmp_path, "-c", "--top-k", "8", lines="/set temp\n/set temp default\n/set top-k\n")
    assert "qwchat: using the settings of the session: temp 0.5, stop 'END'\n" in err
    assert "temp 0.5 (the session)\n" in err
    assert "\ntemp 0\n" in err
    assert "top-k 8 (--top-k)\n" in err


def test_a_reply_interrupted_by_a_kill_continues_with_its_own_settings(tmp_path: Path, store: SessionStore) -> None:
    run_chat(tmp_path, "--temp", "0.5", lines="one\n/set temp 1.5\ntwo\n")
    path = store.folder / store.latest().id / "session.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert "qwchat: using the settings of the session: temp 1.5\n" in run_chat(tmp_path, "-c", lines="/continue\n")[2]
    nodes = store.read(store.latest().id).tree.nodes
    assert [(node.content, (node.settings or {})["temperature"]) for node in nodes[2:]] == [
        ("two", 1.5),
        ("echo: two", 1.5),
    ]


def test_settings_of_one_reply_do_not_apply_to_the_next(tmp_path: Path, store: SessionStore) -> None:
    run_chat(tmp_path, "--temp", "0.5", lines="one\n/retry --temp 2 --seed 3\n")
    assert (
        "qwchat: using the settings of the session: temp 0.5\n"
        in run_chat(tmp_path, "-c", lines="/set temp 1\n/retry --seed 3\n")[2]
    )
    assert "qwchat: using the settings of the session: temp 1\n" in run_chat(tmp_path, "-c", lines="")[2]


def test_invalid_recorded_settings_are_ignored(tmp_path: Path, store: SessionStore) -> None:
    file = store.create("mini", "0123abcd")
    tree = Tree(lambda event: file.append([event]))
    tree.add("user", "one")
    wild = {"temperature": "hot", "top_p": 7, "stop": [1], "seed": "x", "unknown": [], "top_k": 5, "regex": "a+"}
    tree.add("assistant", "two", settings=wild)
    file.close()
    assert "qwchat: using the settings of the session: top-k 5\n" in run_chat(tmp_path, "-c", lines="")[2]


def test_leaving_the_list_leaves_the_program(tmp_path: Path, store: SessionStore) -> None:
    save(store, "one", "two")
    with Terminal("--resume", models=tmp_path, variables={"TERM": "dumb"}) as terminal:
        terminal.wait("type a number to choose")
        terminal.type("\x04")
        assert terminal.end() == 0
        assert "mini at" not in terminal.text


def test_a_message_without_a_reply_is_reported(tmp_path: Path, store: SessionStore) -> None:
    entry = save(store, "one", "two", "File a.py:\n\n```py\nx\n```\n\nthree")
    with Terminal("chat", "-c", models=tmp_path) as terminal:
        terminal.wait("> three\nno reply yet: /continue generates it")
        terminal.prompt()
        terminal.type("/new\r")
        terminal.wait("the next message starts a new session")
        terminal.type(f"/resume {entry.id}\r")
        terminal.wait(f"resumed {entry.id} (one), 3 messages\n> three\nno reply yet: /continue generates it")


def test_resume_shows_no_exchange_in_a_pipe(tmp_path: Path, store: SessionStore) -> None:
    entry = save(store, "one", "two", name="sums")
    assert run_chat(tmp_path, lines="/resume sums\n") == (
        0,
        "",
        "qwchat: mini at 4.88 bits per weight, context 2,048 tokens; /help for help, Ctrl-D to leave\n"
        f"resumed {entry.id} (sums · one), 2 messages\n",
    )


def test_the_system_prompt_of_a_session_stays_unless_another_is_given(tmp_path: Path, store: SessionStore) -> None:
    run_chat(tmp_path, "-s", "Be brief.", lines="one\n")
    entry = store.latest()
    run_chat(tmp_path, "-c", lines="two\n")
    assert store.read(entry.id).tree.system == "Be brief."
    run_chat(tmp_path, "-c", "-s", "Be kind.", lines="three\n")
    assert store.read(entry.id).tree.system == "Be kind."


def test_a_requested_persona_replaces_the_system_prompt_of_a_session(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    personas = tmp_path / "own" / "personas"
    personas.mkdir(parents=True)
    (personas / "poet.toml").write_text("system = 'A poet.'")
    (personas / "hot.toml").write_text("temp = 1.5")
    monkeypatch.setenv("QWCHAT_CONFIG", str(tmp_path / "own"))
    run_chat(tmp_path, "-s", "Be brief.", lines="one\n")
    for arguments, prompt in ((("--as", "hot"), "Be brief."), (("--as", "poet"), "A poet."), ((), "A poet.")):
        assert run_chat(tmp_path, "--continue", *arguments, lines="two\n/system\n")[0] == 0
        assert store.read(store.latest().id).tree.system == prompt


def test_a_persona_of_the_configuration_leaves_a_session_its_system_prompt(
    tmp_path: Path, store: SessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    personas = tmp_path / "own" / "personas"
    personas.mkdir(parents=True)
    (personas / "poet.toml").write_text("system = 'A poet.'")
    monkeypatch.setenv("QWCHAT_CONFIG", str(tmp_path / "own"))
    run_chat(tmp_path, "-s", "Be brief.", lines="one\n")
    (tmp_path / "own" / "config.toml").write_text("as = 'poet'\n")
    assert run_chat(tmp_path, "--continue", lines="two\n/as none\n")[0] == 0
    assert store.read(store.latest().id).tree.system == "Be brief."


def test_the_model_of_a_session_replies_unless_another_is_given(tmp_path: Path, store: SessionStore) -> None:
    environment(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "manifest.json").write_text("{}")
    save(store, "one", "two", model="other")
    assert "qwchat: other at 4.88 bits per weight" in run_chat(tmp_path, "-c", lines="")[2]
    assert "qwchat: mini at 4.88 bits per weight" in run_chat(tmp_path, "-c", "-m", "mini", lines="")[2]


@pytest.mark.parametrize("model", ["gone", "../../tmp", "/etc", "\x1b[2J"])
def test_a_missing_model_of_a_session_is_reported(tmp_path: Path, store: SessionStore, model: str) -> None:
    save(store, "one", "two", model=model)
    code, _, err = run_chat(tmp_path, "-c", lines="")
    assert code == 0
    assert f"the session used the model {model.strip(chr(27))}, which is not available here (see qwchat list)" in err


def test_a_reply_of_another_model_is_reported(tmp_path: Path, store: SessionStore) -> None:
    file = store.create("mini", "ffff")
    tree = Tree(lambda event: file.append([event]))
    tree.add("user", "one")
    tree.add("assistant", "two", model="ffff", token_ids=[1, 2])
    file.close()
    _, _, err = run_chat(tmp_path, "-c", lines="")
    assert "qwchat: the last reply came from another model (mini): mini evaluates the conversation again\n" in err


def test_damage_is_reported(tmp_path: Path, store: SessionStore) -> None:
    entry = save(store, "one", "two")
    with (store.folder / entry.id / "session.jsonl").open("ab") as file:
        file.write(b'nonsense\n{"node": {"id": 3, "par')
    code, _, err = run_chat(tmp_path, "-c", lines="three\n")
    assert code == 0
    assert f"qwchat: error: session {entry.id}: skipped 1 damaged line\n" in err
    assert turn_texts(store, entry) == ["one", "two", "three", "echo: three"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("chat", "-c"), 2, "there is no session to continue yet: qwchat starts one"),
        (("chat", "--resume", "x"), 2, "there is no session 'x': qwchat sessions list shows all sessions"),
        (
            ("chat", "--resume"),
            2,
            "--resume needs a name when there is no terminal: qwchat sessions list shows the names",
        ),
        (("chat", "-c", "--resume"), 2, "--continue and --resume exclude each other: choose one"),
        (("chat", "--session", "../x"), 2, "'../x' is not a session name: use up to 64 letters, digits, spaces, "),
        (("chat", "--session", ""), 2, "'' is not a session name: use up to 64 letters, digits, spaces, "),
        (
            ("-p", "x", "--session", "y", "-n", "2"),
            2,
            "--count prints several replies, but --session continues with one: remove one of them",
        ),
        (("-c", "list"), 2, "put --continue after the command: qwchat list …"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    ran = call(*arguments, models=tmp_path)
    assert ran.returncode == code
    assert ran.stderr.decode().startswith(f"qwchat: error: {message}")


def test_a_session_of_a_newer_version_is_refused_and_kept(tmp_path: Path, store: SessionStore) -> None:
    entry = save(store, "one", "two", name="new")
    path = store.folder / entry.id / "session.jsonl"
    data = path.read_bytes().replace(b'"version": 1', b'"version": 7')
    path.write_bytes(data)
    refused = (
        f"qwchat: error: session {entry.id} was written by a newer qwchat (format 7, this one supports 1): "
        "update qwchat to open it\n"
    )
    for arguments in (("chat", "-c"), ("chat", "--resume", entry.id[:5]), ("sessions", "show", entry.id)):
        ran = call(*arguments, models=tmp_path)
        assert (ran.returncode, ran.stdout, ran.stderr.decode()) == (1, b"", refused)
    listed = call("sessions", models=tmp_path)
    assert f"session {entry.id} was written by a newer qwchat" in listed.stdout.decode()
    assert path.read_bytes() == data


def test_convert_keeps_its_own_resume(tmp_path: Path) -> None:
    ran = call("convert", "--resume", str(tmp_path / "nothing"), models=tmp_path)
    assert "nothing" in ran.stderr.decode()
    assert "no such option" not in ran.stderr.decode()


def test_an_unwritable_folder_is_reported_once(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "sessions").write_text("")
    code, out, err = run_chat(tmp_path, "--quiet", lines="one\ntwo\n")
    assert (code, out) == (0, "echo: one\necho: two\n")
    assert err.count("the chat continues, and saving is retried after every turn") == 1


def test_a_cleared_session_says_how_to_restore_its_turns(tmp_path: Path, store: SessionStore) -> None:
    run_chat(tmp_path, "--session", "sums", lines="one\n/clear\n")
    err = run_chat(tmp_path, "-c", lines="/redo\n")[2]
    assert ", empty (/redo restores its turns): one\nrestored 2 turns\n" in err
    run_chat(tmp_path, "--session", "sums", lines="/clear\n")
    entry = store.find("sums")
    resumed = run_chat(tmp_path, lines="/resume sums\n")[2].splitlines()[1]
    assert resumed == f"resumed {entry.id} (sums · one), empty (/redo restores its turns)"
    single = save(store, "alone")
    assert (
        run_chat(tmp_path, lines=f"/resume {single.id}\n")[2].splitlines()[1]
        == f"resumed {single.id} (alone), 1 message"
    )
