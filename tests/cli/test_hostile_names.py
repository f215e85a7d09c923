"""Names and texts with control sequences: sanitised on a terminal, unchanged in a pipe."""

from __future__ import annotations

import json
from pathlib import Path

from qwchat.cli.json_output import json_line
from tests.chat.pty import Terminal, without_styles
from tests.cli.runs import run

NAME = "evil\x1b]0;title\x07\u202e\x9b31m"
SHOWN = "evil␛]0;title␇<202E><9B>31m"


def test_json_escapes_control_characters_and_keeps_its_value() -> None:
    value = {"text": "a\x9b\u202e\u2028\x7f\x1b\udc80 漢字 👨‍👩‍👧‍👦"}
    line = json_line(value)
    assert json.loads(line) == value
    assert line == '{"text": "a\\u009b\\u202e\\u2028\\u007f\\u001b\\udc80 漢字 👨‍👩‍👧‍👦"}'


def test_names_of_models_are_shown_on_a_terminal_and_kept_in_a_pipe(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "manifest.json").write_text("{}")
    with Terminal("list", models=tmp_path, columns=160) as terminal:
        assert terminal.end() == 0
        assert SHOWN in terminal.text
        assert b"\x1b" not in without_styles(terminal.raw)
    assert SHOWN in run("list", models=tmp_path).stdout.decode()
    names = [model["name"] for model in json.loads(run("list", "--json", models=tmp_path).stdout)["models"]]
    assert NAME in names


def test_extracted_code_is_sanitised_on_a_terminal(tmp_path: Path) -> None:
    reply = "```sh\necho \x1b[31m\n```"
    with Terminal("-q", "-p", "hi", "-x", models=tmp_path, replies=[reply]) as terminal:
        assert terminal.end() == 0
        assert terminal.text.splitlines()[0] == "echo ␛[31m"
    assert run("-q", "-p", "hi", "-x", models=tmp_path, replies=[reply]).stdout == b"echo \x1b[31m\n"
