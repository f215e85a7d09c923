"""The history file: two writers, killed writers, damage, size and permissions."""

from __future__ import annotations

import fcntl
import json
import multiprocessing
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwchat.chat.editor import history
from qwchat.chat.editor.history import HistoryEntry, HistoryFile
from qwchat.chat.editor.paste_folds import PasteFolds
from qwchat.chat.editor.tab_completion import HistorySuggest, InputHistory
from tests.clocks import PATIENCE_SECONDS

WRITER = """
import sys
from pathlib import Path
from qwchat.chat.editor.history import HistoryEntry, HistoryFile
file, name = HistoryFile(Path(sys.argv[1])), sys.argv[2]
number = 0
while True:
    file.append(HistoryEntry(f"{name} {number} " + "x" * (number % 300)))
    print(number, flush=True)
    number += 1
"""


def append(path: Path, name: str, count: int) -> None:
    for number in range(count):
        HistoryFile(path).append(HistoryEntry(f"{name} {number}\nsecond line"))


def test_entries_survive_a_round_trip(tmp_path: Path) -> None:
    file = HistoryFile(tmp_path / "new folder" / "history")
    entries = [HistoryEntry("one"), HistoryEntry("two\nlines\r\x1b 日本"), HistoryEntry("a paste here", ((2, 7),))]
    for entry in entries:
        file.append(entry)
    assert file.entries() == entries
    assert HistoryFile(tmp_path / "nowhere").entries() == []


def test_the_history_file_is_private_whatever_its_mode_was(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.touch(mode=0o644)
    path.chmod(0o644)
    HistoryFile(path).append(HistoryEntry("secret"))
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_only_damaged_lines_are_lost(tmp_path: Path) -> None:
    path = tmp_path / "history"
    HistoryFile(path).append(HistoryEntry("first"))
    deep = "[" * 100_000
    junk = [
        '{"text": 5}',
        "[]",
        "null",
        '{"text": "spans", "pastes": [[0, 99]]}',
        '{"text": "back", "pastes": [[2, 3], [0, 1]]}',
        '{"text": "\\ud800"}',
        deep,
    ]
    path.write_bytes(path.read_bytes() + "\n".join(junk).encode() + b'\n\xff\xfe\n{"text": "torn')
    HistoryFile(path).append(HistoryEntry("last"))
    found = HistoryFile(path).entries()
    assert found == [
        HistoryEntry("first"),
        HistoryEntry("spans"),
        HistoryEntry("back"),
        HistoryEntry("?"),
        HistoryEntry("last"),
    ]


def test_the_history_file_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_BYTES", 10_000)
    file = HistoryFile(tmp_path / "history")
    for number in range(1000):
        file.append(HistoryEntry(f"entry {number}"))
    entries = file.entries()
    assert file.path.stat().st_size < 10_100
    assert [entry.text for entry in entries] == [f"entry {number}" for number in range(1000 - len(entries), 1000)]
    assert len(entries) > 150
    file.append(HistoryEntry("x" * (history.MAX_ENTRY_BYTES + 1)))
    assert file.entries() == entries


@pytest.mark.slow
def test_two_chats_at_once_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=append, args=(tmp_path / "history", name, 200)) for name in ("a", "b", "c")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(PATIENCE_SECONDS)
        assert writer.exitcode == 0
    texts = [entry.text for entry in HistoryFile(tmp_path / "history").entries()]
    for name in ("a", "b", "c"):
        own = [text for text in texts if text.startswith(name)]
        assert own == [f"{name} {number}\nsecond line" for number in range(200)]


@pytest.mark.slow
def test_a_killed_chat_leaves_a_file_that_others_use(tmp_path: Path) -> None:
    path = tmp_path / "history"
    for kill in range(4):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), f"writer{kill}"], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        time.sleep(0.03 * (kill + 1))
        writer.send_signal(signal.SIGKILL)
        said = [0, *(int(line) for line in writer.stdout.read().split("\n")[:-1] if line)]
        writer.wait()
        texts = [entry.text for entry in HistoryFile(path).entries()]
        own = [int(text.split()[1]) for text in texts if text.startswith(f"writer{kill} ")]
        assert own[: len(said)] == said
        assert own == list(range(len(own)))
    HistoryFile(path).append(HistoryEntry("after"))
    assert HistoryFile(path).entries()[-1] == HistoryEntry("after")


def test_a_lock_held_elsewhere_does_not_block_a_chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LOCK_SECONDS", 0.05)
    with (tmp_path / "history.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        HistoryFile(tmp_path / "history").append(HistoryEntry("stubborn"))
    assert HistoryFile(tmp_path / "history").entries() == [HistoryEntry("stubborn")]


def test_an_unwritable_history_file_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    HistoryFile(tmp_path / "file" / "history").append(HistoryEntry("lost"))
    assert HistoryFile(tmp_path / "file" / "history").entries() == []


def test_repeated_entries_are_kept_once_with_their_pastes(tmp_path: Path) -> None:
    folds = PasteFolds()
    remembered = InputHistory(HistoryFile(tmp_path / "history"), folds)
    paste = "line\n" * 20
    for text in ("hello", "hello", f"sum up {folds.label_for(paste)}", " "):
        remembered.append_string(text)
    remembered.keep_unsent("given up")
    assert remembered.get_strings() == ["hello", f"sum up {paste}", "given up"]
    records = [json.loads(line) for line in (tmp_path / "history").read_text().splitlines()]
    assert records == [{"text": "hello"}, {"text": f"sum up {paste}", "pastes": [[7, 107]]}]
    assert remembered.fold(f"sum up {paste}") == "sum up [Pasted text #1 +20 lines]"
    assert remembered.fold("hello") == "hello"


def test_the_newest_entry_with_this_prefix_is_suggested() -> None:
    from prompt_toolkit.buffer import Buffer
    from prompt_toolkit.document import Document

    remembered = InputHistory(None, PasteFolds())
    for text in ("tell me a story", "tell me a joke\nplease", "tell"):
        remembered.append_string(text)
    for typed, rest in (("tell me", " a joke"), ("tell me a s", "tory"), ("tell me a joke", None), ("x", None)):
        suggestion = HistorySuggest(remembered).get_suggestion(Buffer(), Document(typed))
        assert (suggestion.text if suggestion else None) == rest


def test_only_the_end_of_a_huge_file_is_read_and_a_pipe_does_not_block(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # Sparse: reading it all would take a terabyte of memory.
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"text": "last"}\n')
    assert HistoryFile(path).entries() == [HistoryEntry("last")]
    HistoryFile(path).append(HistoryEntry("more"))
    assert [entry.text for entry in HistoryFile(path).entries()] == ["last", "more"]
    assert path.stat().st_size <= history.MAX_BYTES
    path.unlink()
    os.mkfifo(path)
    assert HistoryFile(path).entries() == []
    HistoryFile(path).append(HistoryEntry("lost"))
    assert HistoryFile(path).entries() == []
