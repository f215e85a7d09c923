"""Files in the chat, as the user sees them in a pseudo-terminal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.chat.pty import Terminal


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("src").mkdir()
    Path("src/app.py").write_text("import os\nprint(os.name)\n")
    Path("notes.md").write_text("# Notes\n\n```\n@src/app.py\n```\n")
    Path("two words.txt").write_text("blank\n")
    Path("picture.png").write_bytes(b"\x89PNG\0")
    return tmp_path


def test_a_mentioned_file_is_counted_and_sent(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=["It prints."]) as terminal:
        terminal.prompt()
        terminal.type("what does @src/app.py do, @alice?\r")
        terminal.wait("decode")
        terminal.prompt()
        lines = terminal.text.splitlines()
        assert lines[1:4] == [
            "> what does @src/app.py do, @alice?",
            "qwchat: src/app.py, 7 tokens; context 13/2,048 with this message",
            "It prints.",
        ]
        terminal.type(f"/save {tmp_path}/talk.json\r")
        terminal.wait("saved to")
        sent = json.loads((tmp_path / "talk.json").read_text())["messages"][0]["content"]
        assert sent == ("File src/app.py:\n\n```py\nimport os\nprint(os.name)\n```\n\nwhat does src/app.py do, @alice?")


def test_a_message_that_cannot_be_sent_returns_as_a_draft(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("see @picture.png\r")
        terminal.wait("qwchat: error: picture.png is a binary file (contains NUL bytes)")
        terminal.wait_until(lambda: terminal.text.splitlines()[-1] == "> see @picture.png", "the draft")
        terminal.type("\x15look at @src now\r")
        terminal.wait("qwchat: error: src is a folder: name its files, for example src/*.md")
        terminal.wait_until(lambda: terminal.text.splitlines()[-1] == "> look at @src now", "the draft")
        terminal.type("\x15see @src/ap.py\r")
        terminal.wait("qwchat: @src/ap.py matches no file and is sent as text", "echo: see @src/ap.py")


def test_files_attached_by_command_are_sent_once(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("/file\r")
        terminal.wait("no files are attached: /file PATH attaches one")
        terminal.prompt()
        terminal.type('/file "two words.txt"\r')
        terminal.wait("attached to the next message: two words.txt, 6 tokens")
        terminal.prompt()
        terminal.type("/file src/*.py:2\r")
        terminal.wait("src/app.py:2: 7 tokens", "attached to the next message: 2 files, 13 tokens")
        terminal.prompt()
        terminal.type("why?\r")
        terminal.wait("2 files, 13 tokens; context 15/2,048 with this message", "print(os.name)\n──\n\nwhy?")
        terminal.prompt()
        terminal.type("again\r")
        terminal.wait("echo: again")
        terminal.prompt()
        terminal.type("/file notes.md\r")
        terminal.wait("notes.md, ")
        terminal.prompt()
        terminal.type("/file none\r")
        terminal.wait("no files are attached\n")


def test_a_file_named_in_a_reply_is_not_read(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=["Look into @src/app.py and @notes.md.", "Done."]) as terminal:
        terminal.prompt()
        terminal.type("where?\r")
        terminal.wait("@notes.md.")
        terminal.prompt()
        terminal.type("go on\r")
        terminal.wait("Done.")
        terminal.prompt()
        assert "with this message" not in terminal.text
        assert "import os" not in terminal.text


def test_tab_completes_mentions(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("see @no\t")
        terminal.wait("> see @notes.md")
        terminal.type("\x15/file tw\t")
        terminal.wait('> /file "two words.txt"')
