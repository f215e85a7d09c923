"""The real program with the embedded model in a terminal, checked against the exact screen and scrollback.

Speeds differ from run to run, so they are masked; everything else is compared character by character.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from qwchat.chat.view.reply import ReplyView
from qwchat.chat.view.tail import TerminalSize
from qwchat.markdown.styles import Styling
from qwchat.models_folder import embedded_checkpoint, is_checkpoint
from tests.chat.pty import COLUMNS, ROWS, Terminal
from tests.chat.view.emulator import EmulatedTerminal
from tests.starter import REAL, run_to_end
from tests.tiers import some

PROGRAM = "from qwchat.cli.main import main; main()"
BANNER = "qwchat: mini-q4 at 4.89 bits per weight, context 2,048 tokens; /help for help, Ctrl-D to leave"
FIGURES = "(figures)"
WORLDLY = ("--temp", "3", "--top-k", "0", "--top-p", "1", "--repeat-penalty", "1", "--seed", "5")

pytestmark = pytest.mark.skipif(
    not is_checkpoint(embedded_checkpoint()), reason="models/mini holds no weights: models/recipe trains them"
)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the embedded model into a models folder."""
    folder = tmp_path_factory.mktemp("mini") / "models"
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "-q", "-p", "hello", "--max-tokens", "1"],
        env={**os.environ, "QWCHAT_MODELS": str(folder)},
        capture_output=True,
        check=True,
    )
    return folder


def start_chat(
    models: Path, home: Path, *arguments: str, rows: int = ROWS, columns: int = COLUMNS, **variables: str
) -> Terminal:
    """Start the program in a terminal, with its own home folder and the compiled kernels of all tests."""
    return Terminal(
        "chat",
        *arguments,
        models=home,
        entry=REAL,
        rows=rows,
        columns=columns,
        variables={"QWCHAT_MODELS": str(models), "QWCHAT_CACHE": cache(), **variables},
    )


def cache() -> str:
    from qwchat.cpu.kernels.kernel_store import KERNELS

    return str(KERNELS.folder.parent)


def answer(models: Path, prompt: str, *arguments: str) -> str:
    """Return the reply that the program gives without a terminal."""
    done = run_to_end(["-p", prompt, "--json", *arguments], {**os.environ, "QWCHAT_MODELS": str(models)}, entry=REAL)
    assert done.returncode == 0, done.stderr
    return str(json.loads(done.stdout)["text"])


def shown(reply: str, columns: int = COLUMNS, *, colour: bool = True) -> list[str]:
    """Return the rows that a reply takes when it is printed at once."""
    out = EmulatedTerminal(columns, ROWS)
    styling = Styling(terminal=True, emphasis=True, colour=colour)
    view = ReplyView(out, styling, size=lambda _: TerminalSize(columns, ROWS))
    view.write(reply)
    view.end()
    return out.lines


def screen(terminal: Terminal) -> list[str]:
    """Return all rows, with each line of figures replaced by a known one."""
    figures = re.compile(r"(\d+ ms|\d+\.\d\d s)( to first token)? · ")
    return [FIGURES if figures.match(row) else row for row in terminal.text.split("\n")]


def turn_texts(home: Path) -> list[tuple[str, str]]:
    """Return the role and text of every turn in a conversation saved as JSON."""
    messages = json.loads((home / "talk.json").read_text())["messages"]
    return [(message["role"], message["content"]) for message in messages]


def save(terminal: Terminal, home: Path) -> list[tuple[str, str]]:
    (home / "talk.json").unlink(missing_ok=True)
    ask(terminal, f"/save {home}/talk.json")
    return turn_texts(home)


def ask(terminal: Terminal, *inputs: str) -> None:
    for typed in inputs:
        before = terminal.text.count("\n")
        terminal.type(typed + "\r")
        terminal.wait_until(lambda before=before: terminal.text.count("\n") > before, "the line to be taken")
        terminal.prompt()


def expected(*parts: Sequence[str] | str) -> list[str]:
    rows: list[str] = []
    for part in parts:
        rows += [part] if isinstance(part, str) else part
    return rows


@pytest.mark.parametrize("columns", some([20, 60, 200], 3))
@pytest.mark.slow
def test_a_conversation_in_a_narrow_and_a_wide_window(models: Path, tmp_path: Path, columns: int) -> None:
    questions = ("What can you do?", "2 + 3?")
    with start_chat(models, tmp_path, "--temp", "0", "-q", columns=columns) as terminal:
        terminal.prompt()
        ask(terminal, *questions)
        rows = terminal.text.split("\n")
        replies = [text for role, text in save(terminal, tmp_path) if role == "assistant"]
        assert replies[0] == answer(models, questions[0], "--temp", "0")
        assert rows == expected(
            *(f"> {questions[0]}", shown(replies[0], columns), ""),
            *(f"> {questions[1]}", shown(replies[1], columns), ""),
            ">",
        )


def test_history_completion_and_commands(models: Path, tmp_path: Path) -> None:
    with start_chat(models, tmp_path, "--temp", "0") as terminal:
        terminal.prompt()
        ask(terminal, "How many days has a week?", "Hello")
        terminal.type("\x12days")
        terminal.wait("How many days has a week?\n", "days")
        terminal.type("\r")
        ask(terminal, "")
        terminal.type("/und\t\r")
        terminal.wait("/redo restores")
        terminal.prompt()
        replies = [text for role, text in save(terminal, tmp_path) if role == "assistant"]
        assert len(replies) == 2
        rows = screen(terminal)
        start = rows.index("> How many days has a week?")
        assert rows[:start] == [BANNER]
        assert rows[start : start + 2 + len(shown(replies[0]))] == expected(
            "> How many days has a week?", shown(replies[0]), FIGURES
        )
        assert "> /undo" in rows


@pytest.mark.slow
def test_a_paste_of_500_lines(models: Path, tmp_path: Path) -> None:
    lines = "\n".join(f"{number % 10}" for number in range(500))
    with start_chat(models, tmp_path, "--temp", "0", "--max-tokens", "8") as terminal:
        terminal.prompt()
        terminal.type(f"\x1b[200~{lines}\x1b[201~")
        terminal.wait("[Pasted text #1 +500 lines]")
        ask(terminal, "")
        (_, question), (_, reply) = save(terminal, tmp_path)
        assert question == lines
        assert screen(terminal)[:2] == [BANNER, "> [Pasted text #1 +500 lines]"]
        assert screen(terminal)[2 : 2 + len(shown(reply))] == shown(reply)


@pytest.mark.slow
def test_a_stopped_reply_continues_to_the_same_end(models: Path, tmp_path: Path) -> None:
    whole = answer(models, "Tell me everything", *WORLDLY, "--max-tokens", "1500")
    with start_chat(models, tmp_path, *WORLDLY, "--max-tokens", "1500", "--render", "plain") as terminal:
        terminal.prompt()
        terminal.type("Tell me everything\r")
        terminal.wait_until(lambda: len(terminal.text) > 400, "some of the reply")
        terminal.type("\x1b")
        terminal.wait("stopped; /continue resumes the reply")
        terminal.prompt()
        stopped = save(terminal, tmp_path)[-1][1]
        assert whole.startswith(stopped)
        assert 0 < len(stopped) < len(whole)
        ask(terminal, "/set max-tokens none", "/continue")
        continued = save(terminal, tmp_path)[-1][1]
        assert continued.startswith(whole)


def test_a_prefill_is_stopped(models: Path, tmp_path: Path) -> None:
    with start_chat(models, tmp_path, "--temp", "0") as terminal:
        terminal.prompt()
        terminal.type("\x1b[200~" + "word " * 1500 + "\x1b[201~")
        terminal.wait("[Pasted text #1")
        terminal.type("\r\x03")
        terminal.wait("stopped; no tokens generated, /retry tries again")
        terminal.prompt()
        ask(terminal, "/retry")
        question, reply = save(terminal, tmp_path)
        assert (question[0], question[1].strip()) == ("user", ("word " * 1500).strip())
        assert reply[0] == "assistant"


def test_retry_alternatives_edit_undo_and_fork(models: Path, tmp_path: Path) -> None:
    with start_chat(models, tmp_path, "--temp", "0", "--session", "first") as terminal:
        terminal.prompt()
        ask(terminal, "My name is Anna.", "What is my name?")
        first = save(terminal, tmp_path)
        assert "Anna" in first[-1][1]
        ask(terminal, "/retry --temp 2 --seed 8")
        second = save(terminal, tmp_path)
        assert second[:3] == first[:3]
        assert second[3] != first[3]
        ask(terminal, "/alt 1")
        assert save(terminal, tmp_path) == first
        ask(terminal, "/fork other")
        terminal.type("/edit 2\r")
        terminal.wait("> /edit 2 My name is Anna.")
        terminal.type("\x08" * 5)
        ask(terminal, "Emma.")
        assert "> /edit 2 My name is Emma." in terminal.text
        edited = save(terminal, tmp_path)
        assert edited[0] == ("user", "My name is Emma.")
        ask(terminal, "What is my name?")
        assert "Emma" in save(terminal, tmp_path)[-1][1]
        ask(terminal, "/resume first")
        assert save(terminal, tmp_path) == first
        ask(terminal, "/undo 2")
        ask(terminal, "Hello")
        assert [role for role, _ in save(terminal, tmp_path)] == ["user", "assistant"]


@pytest.mark.slow
@pytest.mark.parametrize("growing", [True, False])
def test_the_window_changes_while_a_reply_streams(models: Path, tmp_path: Path, growing: bool) -> None:
    sizes = [(12, 30), (20, 60), (30, 80), (ROWS, COLUMNS)]
    rows, columns = sizes[0] if growing else sizes[-1]
    options = (*WORLDLY, "--max-tokens", "1200", "--render", "markdown")
    with start_chat(models, tmp_path, *options, rows=rows, columns=columns) as terminal:
        terminal.prompt()
        terminal.type("Tell me everything\r")
        for rows, columns in sizes[1:] if growing else sizes[-2::-1]:
            before = len(terminal.raw)
            terminal.wait_until(lambda before=before: len(terminal.raw) > before + 300, "more of the reply")
            terminal.resize(rows, columns)

        # A shrinking emulator cuts off rows that a terminal keeps, so only the bytes sent can be checked.
        def sent() -> str:
            return terminal.text if growing else re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.raw.decode())

        figures = re.compile(r"(context|ctx)\s+[\d,]+/2,048")
        terminal.wait_until(lambda: figures.search(sent()) is not None, "the figures")
        terminal.prompt()
        everything = sent()
        reply = save(terminal, tmp_path)[-1][1]
    text = re.sub(r"\s", "", everything)
    words = re.findall(r"[A-Za-z]{3,}", reply)
    assert len(words) > 50
    place = 0
    for word in words:  # Every word is there, in order; line breaks depend on the window.
        found = text.find(word, place)
        assert found >= 0, f"{word} is missing behind {text[max(0, place - 40) : place]}"
        place = found + len(word)
    if growing:  # Nothing is repeated or added. (Digits may be the numbers of code blocks.)
        start = everything.index("Tell me everything") + len("Tell me everything")
        end = re.compile(r"^(qwchat: |\d+\.\d\d s )", re.MULTILINE).search(everything, start)
        assert end is not None
        assert letters(everything[start : end.start()]) == letters(reply)


def letters(text: str) -> str:
    return "".join(character for character in text if character.isalpha())


@pytest.mark.slow
def test_wide_letters_and_emoji(models: Path, tmp_path: Path) -> None:
    question = "日本語 と 한국어, 👩‍👩‍👧 🇫🇷 é ü"
    with start_chat(models, tmp_path, "--temp", "0", columns=40) as terminal:
        terminal.prompt()
        ask(terminal, question)
        (_, asked), (_, reply) = save(terminal, tmp_path)
        assert asked == question
        rows = screen(terminal)
        after = rows.index(FIGURES)
        assert rows[after - len(shown(reply, 40)) : after] == shown(reply, 40)


@pytest.mark.slow
def test_a_dumb_terminal_and_one_without_colour(models: Path, tmp_path: Path) -> None:
    whole = answer(models, "What can you do?", "--temp", "0")
    for variables, escapes in (({"TERM": "dumb"}, False), ({"NO_COLOR": "1"}, True)):
        with start_chat(models, tmp_path, "--temp", "0", "--no-save", **variables) as terminal:
            terminal.wait("Ctrl-D to leave\n>")
            terminal.type("What can you do?\r")
            terminal.wait("s to first token")
            terminal.prompt()
            rows = screen(terminal)
            colours = set(re.findall(rb"\x1b\[[0-9;]*?((?:3|4|9|10)[0-7])(?:;|m)", terminal.raw))
            assert colours == set()
            assert (b"\x1b" in terminal.raw) is escapes
            reply = shown(whole, colour=False) if escapes else whole.split("\n")
            assert rows == expected(BANNER, "> What can you do?", reply, FIGURES, "", ">")


@pytest.mark.slow
def test_a_reply_longer_than_the_screen_and_than_10_000_lines(tmp_path: Path) -> None:
    lines = [f"{number}. line" for number in range(1, 10_051)]
    with Terminal("chat", "-q", models=tmp_path, replies=["\n".join(lines)], rows=24, context_size=1 << 20) as terminal:
        terminal.prompt()
        terminal.type("go\r")
        terminal.wait_until(lambda: lines[-1] in terminal.bottom, "the last line")
        terminal.prompt()
        rows = terminal.text.split("\n")
    assert [row.strip() for row in rows] == ["> go", *lines, "", ">"]
