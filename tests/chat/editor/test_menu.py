"""The completion menu: through prompt-toolkit's pipe, and in a pseudo-terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from qwchat.chat.editor import line_editor, tab_completion
from qwchat.chat.editor.line_editor import LineEditor
from qwchat.chat.editor.message_reader import EditingMode
from qwchat.chat.suggestions import Suggestion, match_suggestions
from qwchat.markdown.styles import PLAIN
from tests.chat.editor.no_thoughts import NoThoughts
from tests.chat.pty import Terminal
from tests.clocks import PATIENCE_SECONDS

TAB, SHIFT_TAB, ESCAPE = "\t", "\x1b[Z", "\x1b"
SETTINGS = (("/set temp", ""), ("/set top-p", ""), ("/set stats", ""), ("/set repeat", ""), ("/help", ""))


def typed(keys: str, choices: Iterable[tuple[str, str]] = SETTINGS, mode: EditingMode = "emacs") -> str:
    """Return the message that the editor sends if `keys` are typed and `choices` are offered."""

    def suggest(text: str) -> Iterable[Suggestion]:
        return match_suggestions(text, choices)

    with create_pipe_input() as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_editor, "create_input", lambda terminal: pipe)
        patch.setattr(line_editor, "create_output", lambda **unused: DummyOutput())
        editor = LineEditor(sys.stdin, suggest, None, styling=PLAIN, thoughts=NoThoughts())
        editor.set_editing_mode(mode)
        pipe.send_text(keys)
        return editor.read()


@pytest.mark.parametrize("mode", ["emacs", "vi"])
@pytest.mark.parametrize(
    ("keys", "sent"),
    [
        (f"/h{TAB}\r", "/help"),
        (f"/h{SHIFT_TAB}\r", "/help"),
        (f"/set t{TAB}\r\r", "/set temp"),
        (f"/set t{TAB}{TAB}\r\r", "/set top-p"),
        (f"/set t{TAB}{TAB}{TAB}{SHIFT_TAB}\r\r", "/set top-p"),
        (f"/set t{SHIFT_TAB}\r\r", "/set repeat"),
        (f"/set t{SHIFT_TAB}{SHIFT_TAB}{TAB}\r\r", "/set repeat"),
        # After the last entry comes the typed text, then the first entry again.
        (f"/set t{TAB * 5}\r", "/set t"),
        (f"/set t{TAB * 6}\r\r", "/set temp"),
        # Enter accepts the entry; further keys follow it.
        (f"/set t{TAB}\r 0.5\r", "/set temp 0.5"),
        (f"/set t{TAB} 0.5\r", "/set temp 0.5"),
        (f"/set tempx{TAB}{TAB}\r", "/set tempx"),
        (f"nothing fits{TAB}{SHIFT_TAB}\r", "nothing fits"),
    ],
)
def test_tab_and_shift_tab_move_and_enter_accepts(keys: str, sent: str, mode: EditingMode) -> None:
    assert typed(keys, mode=mode) == sent


def test_a_common_prefix_is_inserted_before_an_entry_is_selected() -> None:
    files = (("@src/apple.py", ""), ("@src/apply.py", ""))
    assert typed(f"@src{TAB}!\r", files) == "@src/appl!"
    assert typed(f"@src{TAB}{TAB}\r\r", files) == "@src/apple.py"
    assert typed(f"@src{TAB}{TAB}{TAB}\r\r", files) == "@src/apply.py"


def test_alt_enter_adds_a_line_even_with_an_open_menu() -> None:
    assert typed(f"/set t{TAB}{ESCAPE}\rmore\r") == "/set temp\nmore"


def test_tab_is_not_lost_if_completions_are_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tab_completion, "TAB_WAIT_SECONDS", 0.0)
    asked = threading.Event()

    def suggest(text: str) -> Iterable[Suggestion]:
        asked.wait(PATIENCE_SECONDS)
        return match_suggestions(text, SETTINGS)

    buffer = tab_completion.Buffer(
        completer=tab_completion.SuggestionCompleter(suggest), document=tab_completion.Document("/set te")
    )
    started: list[dict[str, bool]] = []
    monkeypatch.setattr(buffer, "start_completion", lambda **how: started.append(how))
    tab_completion.press_tab(buffer, buffer.completer)
    tab_completion.press_tab(buffer, buffer.completer, backwards=True)
    asked.set()
    assert started == [
        {"select_first": True, "select_last": False},
        {"select_first": False, "select_last": True},
    ]
    # Tab moves through an open menu without another slow search.
    found = [tab_completion.Completion("/set temp", -7), tab_completion.Completion("/set repeat", -7)]
    buffer.complete_state = tab_completion.CompletionState(buffer.document, found)
    tab_completion.press_tab(buffer, buffer.completer)
    assert buffer.text == "/set temp"


def test_a_slash_opens_the_menu_and_escape_closes_it(tmp_path: Path) -> None:
    with Terminal("chat", "-q", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type("/")
        terminal.wait("generate another reply to the last message")
        terminal.type(ESCAPE)
        terminal.wait_until(lambda: terminal.text == "> /", "the menu to close")
        terminal.type("se")
        terminal.wait("/sessions", "show or change a setting")
        terminal.type(TAB)
        terminal.wait("> /set")
        terminal.type(TAB)
        terminal.wait("> /sessions")
        terminal.type(ESCAPE)
        terminal.wait_until(lambda: terminal.text == "> /se", "what was typed")
        terminal.type(f"t see{TAB}\r")
        terminal.wait_until(lambda: terminal.text == "> /set seed", "the choice, with the menu closed")
        terminal.type(" 5\r")
        terminal.wait("> /set seed 5\nseed 5\n>")


def test_tab_moves_through_files_and_enter_opens_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    for name in ("alpha.txt", "beta/one.txt", "beta/two.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"text of {name}")
    with Terminal("chat", "-q", models=tmp_path, folder=folder) as terminal:
        terminal.prompt()
        terminal.type("see @")
        terminal.wait("@alpha.txt", "@beta/")
        terminal.type(TAB + TAB)
        terminal.wait("> see @beta/")
        terminal.type("\r")
        terminal.wait("@beta/one.txt", "@beta/two.txt")
        terminal.type(SHIFT_TAB)
        terminal.wait("> see @beta/two.txt")
        terminal.type("\r\r")
        terminal.wait("echo: File beta/two.txt:", "text of beta/two.txt")


def test_escape_closes_the_menu_in_vi_mode(tmp_path: Path) -> None:
    with Terminal("chat", "-q", "--editing-mode", "vi", models=tmp_path) as terminal:
        terminal.prompt()
        terminal.type(f"/se{TAB}{TAB}")
        terminal.wait("> /sessions", "show or change a setting")
        terminal.type(ESCAPE)
        terminal.wait_until(
            lambda: terminal.text == "> /sessions" and "vi: normal" in terminal.toolbar, "the menu to close"
        )
        terminal.type(f"{TAB}0Dihello\r")
        terminal.wait("> hello\necho: hello")
