"""Thoughts in a chat, as the user sees it in a pseudo-terminal."""

from __future__ import annotations

import re
from pathlib import Path

from tests.chat.pty import Terminal

SLOW = " ".join(f"idea{number}" for number in range(200))
REPLY = "I think so\n</think>\n\nYes **it** is"
FOLDED = re.compile(r"thought for \d+ s, 4 tokens \(Ctrl-T shows it\)")


def test_a_thought_is_folded_and_shown_on_request(tmp_path: Path) -> None:
    with Terminal("chat", models=tmp_path, replies=[REPLY], reasoning="open", token_seconds=0.05) as terminal:
        terminal.prompt()
        terminal.type("true?\r")
        terminal.wait("I think")
        lines = terminal.prompt().splitlines()
        assert FOLDED.fullmatch(lines[2])
        assert lines[3] == "Yes it is"
        assert "I think" not in terminal.text
        terminal.type("/think\r")
        terminal.wait("I think so")
        terminal.prompt()
        terminal.type("/think show\r")
        terminal.wait("think show")
        terminal.prompt()
        terminal.type("and now?\r")
        screen = terminal.wait("and now?", "Yes it is")
        terminal.prompt()
        assert "I think so\n\nYes it is" in terminal.text[screen.index("and now?") :]
        terminal.type("\x04")
        assert terminal.end() == 0
    with Terminal("chat", "-c", models=tmp_path, replies=[REPLY], reasoning="open") as terminal:
        lines = terminal.prompt().splitlines()
        assert "> and now?" in lines
        assert "Yes it is" in lines
        assert not any("think" in line for line in lines)


def test_a_reply_stopped_while_thinking_continues(tmp_path: Path) -> None:
    script = {"replies": [f"{SLOW[:60]}\n</think>\n\nYes"], "reasoning": "open", "token_seconds": 0.2}
    with Terminal("chat", models=tmp_path, **script) as terminal:
        terminal.prompt()
        terminal.type("true?\r")
        terminal.wait("idea2")
        terminal.type("\x03")
        lines = terminal.wait("stopped while thinking; /continue resumes it").splitlines()
        assert lines[1:3] == ["> true?", "stopped while thinking; /continue resumes it"]
        terminal.prompt()
        terminal.type("/continue\r")
        terminal.wait("Yes")
        terminal.prompt()
        terminal.type("/think\r")
        terminal.wait(SLOW[:60].rstrip())


def test_a_single_question_folds_its_thought_on_a_terminal(tmp_path: Path) -> None:
    with Terminal("-p", "true?", models=tmp_path, replies=[REPLY], reasoning="open") as terminal:
        assert terminal.end() == 0
        lines = terminal.text.splitlines()
        assert re.fullmatch(r"thought for \d+ s, 4 tokens", lines[0])
        assert lines[1] == "Yes it is"


def test_the_cost_of_a_left_out_thought_is_told_once_per_turn(tmp_path: Path) -> None:
    script = {"replies": [REPLY], "reasoning": "open", "reevaluation_seconds": 60.0}
    with Terminal("chat", models=tmp_path, **script) as terminal:
        terminal.prompt()
        terminal.type("true?\r")
        terminal.wait("Yes it is")
        terminal.prompt()
        assert "again" not in terminal.text
        for number in (1, 2):
            terminal.type(f"and now{number}?\r")
            terminal.wait(f"and now{number}?", "Yes it is")
            terminal.prompt()
            assert terminal.text.count("again without the last thought (/set keep-thoughts on keeps it)") == number
        terminal.type("/set keep-thoughts on\r")
        terminal.wait("keep-thoughts on", "keep-thoughts on")
        terminal.prompt()
        terminal.type("and then?\r")
        terminal.wait("and then?", "Yes it is")
        terminal.prompt()
        assert terminal.text.count("again without the last thought") == 2


def test_ctrl_t_shows_and_folds_the_last_thought_above_the_prompt(tmp_path: Path) -> None:
    thought = "\n".join(f"idea {number}" for number in range(8))
    with Terminal("chat", models=tmp_path, replies=[f"{thought}\n</think>\n\nYes"], reasoning="open") as terminal:
        terminal.prompt()
        terminal.type("hello\x14")  # Without a thought, the keys of emacs: exchange two letters.
        terminal.wait("> helol")
        terminal.type("\r")
        terminal.wait("Yes")
        before = terminal.prompt()
        terminal.type("draft\x14")
        terminal.wait("idea 7", "> draft")
        assert terminal.text.splitlines()[-9:] == [*thought.splitlines(), "> draft"]
        terminal.type("\x14s")
        terminal.wait_until(lambda: terminal.text == f"{before} drafts", "the thought to be folded")
        terminal.type("\x14")
        terminal.wait("idea 0", "> drafts")
        terminal.type("\r")
        terminal.wait_until(lambda: terminal.text.count("Yes") == 2, "the reply")
        assert terminal.prompt().count("idea 7") == 1


def test_ctrl_t_shows_a_thought_while_it_is_generated(tmp_path: Path) -> None:
    reply = f"{SLOW[:47]}\n</think>\n\nYes"
    with Terminal("chat", models=tmp_path, replies=[reply], reasoning="open", token_seconds=0.2) as terminal:
        terminal.prompt()
        terminal.type("true?\r")
        terminal.wait("idea1")
        terminal.type("\x14")
        terminal.wait("Yes")
        terminal.prompt()
        assert SLOW[:47].rstrip() in terminal.text
