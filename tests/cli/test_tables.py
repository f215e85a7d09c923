"""Tables on terminals of several widths, with and without colour, and in a pipe."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from qwchat.chat.view.tail import TerminalSize
from qwchat.cli import bench, list_models, sessions, tables
from qwchat.cli.streams import Streams
from qwchat.cli.tables import Column, TableWriter, wrap_cell
from tests.chat.pty import Terminal, without_styles
from tests.cli.runs import call

COLUMNS = (
    Column("tensor", wrap=16, style="bold"),
    Column("layers", drop=2),
    Column("format", styles={"q8": "cyan"}),
    Column("shape", drop=3),
    Column("bytes", right=True),
    Column("error", right=True, drop=1),
)
ROWS = [
    ("embed_tokens.weight", "", "q8", "151936 × 896", "141,041,664", "0.0045"),
    ("layers.*.self_attn.q_proj.weight", "0–23", "q4", "896 × 896", "10,321,920", "0.0712"),
    ("漢字\n\x1b[31m", "0", "q4", "896", "3,584", ""),
]
PLAIN = """\
tensor                            layers  format  shape               bytes   error
embed_tokens.weight                       q8      151936 × 896  141,041,664  0.0045
layers.*.self_attn.q_proj.weight  0–23    q4      896 × 896      10,321,920  0.0712
漢字␊␛[31m                        0       q4      896                 3,584"""


class Stream(io.StringIO):
    """Standard output of a kind."""

    encoding = "utf-8"

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a writer for standard output of the given width; None is a pipe."""

    def made(columns: int | None = 80, encoding: str = "utf-8", **variables: str) -> TableWriter:
        for name, value in ({"TERM": "xterm-256color"} | variables).items():
            monkeypatch.setenv(name, value)
        stream = Stream(terminal=columns is not None)
        monkeypatch.setattr(stream, "encoding", encoding, raising=False)
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setattr(tables, "terminal_size", lambda stream: TerminalSize(columns or 80, 24))
        return TableWriter(Streams())

    return made


def plain(text: str) -> str:
    """Remove styles, and blanks at the ends of lines."""
    return "\n".join(line.rstrip() for line in without_styles(text.encode()).decode().split("\n"))


def test_a_pipe_gets_plain_columns(write: Any) -> None:
    assert write(None).table(COLUMNS, ROWS) == PLAIN
    assert write(None).pairs([("a", "b" * 200), ("name", "漢\n")]) == f"a     {'b' * 200}\nname  漢␊"
    assert write(None).paragraph("word " * 40) == "word " * 40


def test_a_wide_terminal_shows_everything(write: Any) -> None:
    head, *rows = PLAIN.split("\n")
    assert plain(write(120).table(COLUMNS, ROWS)).split("\n") == [head, "─" * 83, *rows]


def test_80_columns_break_a_long_name(write: Any) -> None:
    assert plain(write(80).table(COLUMNS, ROWS)) == (
        "tensor                         layers  format  shape               bytes   error\n"
        "────────────────────────────────────────────────────────────────────────────────\n"
        "embed_tokens.weight                    q8      151936 × 896  141,041,664  0.0045\n"
        "layers.*.self_attn.q_proj.     0–23    q4      896 × 896      10,321,920  0.0712\n"
        "weight\n"
        "漢字␊␛[31m                     0       q4      896                 3,584"
    )


def test_40_columns_leave_out_what_matters_least_and_say_so(write: Any) -> None:
    assert plain(write(40).table(COLUMNS, ROWS)) == (
        "tensor               format        bytes\n"
        "────────────────────────────────────────\n"
        "embed_tokens.weight  q8      141,041,664\n"
        "layers.*.self_attn.  q4       10,321,920\n"
        "q_proj.weight\n"
        "漢字␊␛[31m           q4            3,584\n"
        "columns not shown: layers, shape, error"
    )


def test_a_column_that_is_empty_is_left_out_without_a_word(write: Any) -> None:
    rows = [(*row[:-1], "") for row in ROWS]
    assert "error" not in plain(write(120).table(COLUMNS, rows))
    assert "error" in write(None).table(COLUMNS, rows)


@pytest.mark.parametrize("columns", range(20, 125, 7))
def test_no_line_is_wider_than_the_terminal_and_no_character_of_a_name_is_lost(write: Any, columns: int) -> None:
    from wcwidth import wcswidth

    writer = write(columns)
    lines = plain(writer.table(COLUMNS, ROWS)).split("\n")
    lines += plain(writer.pairs([("folder", "/home/漢字漢字漢字漢字漢字/models/qwen2-0.5b"), ("x", "")])).split("\n")
    assert max(map(wcswidth, lines)) <= columns
    first = "".join(line.split(" ")[0] for line in lines)
    assert "layers.*.self_attn.q_proj.weight" in first


def test_a_very_narrow_window_gets_plain_columns(write: Any) -> None:
    assert write(19).table(COLUMNS, ROWS) == PLAIN


def test_pairs_continue_below_their_values(write: Any) -> None:
    pairs = [("folder", "/home/.local/share/qwchat/models"), ("shape", "24 layers, 14 heads of 64")]
    assert plain(write(30).pairs(pairs)) == (
        "folder  /home/.local/share/\n        qwchat/models\nshape   24 layers, 14 heads of\n        64"
    )


@pytest.mark.parametrize(
    ("text", "width", "lines"),
    [
        ("would be in /home/.config/qwchat", 16, ["would be in", "/home/.config/", "qwchat"]),
        ("/a/very/long/path", 8, ["/a/very/", "long/", "path"]),
        ("q_proj.weight", 8, ["q_proj.", "weight"]),
        ("aaaaaaaaaaaa b", 5, ["aaaaa", "aaaaa", "aa b"]),
        ("漢字漢字漢字", 5, ["漢字", "漢字", "漢字"]),
        ("👩‍👩‍👧👩‍👩‍👧 é", 3, ["👩‍👩‍👧", "👩‍👩‍👧", "é"]),
        ("", 5, [""]),
    ],
)
def test_cells_break_between_words_and_within_long_ones(text: str, width: int, lines: list[str]) -> None:
    assert wrap_cell(text, width).split("\n") == lines


@pytest.mark.parametrize(
    ("variables", "codes"),
    [
        ({}, {"1", "2", "36"}),
        ({"NO_COLOR": "1"}, {"1", "2"}),
        ({"QWCHAT_COLOR": "never"}, set()),
        ({"TERM": "dumb"}, set()),
        ({"TERM": "dumb", "QWCHAT_COLOR": "always"}, {"1", "2", "36"}),
        ({"QWCHAT_TEMP": "hot"}, {"1", "2", "36"}),  # A mistake in the settings does not matter here.
    ],
)
def test_styles_follow_the_terminal_and_the_settings(write: Any, variables: dict[str, str], codes: set[str]) -> None:
    text = write(80, **variables).table(COLUMNS, ROWS)
    assert {code for found in re.findall(r"\x1b\[([\d;]*)m", text) for code in found.split(";")} - {"0"} == codes
    assert "─" in text


@pytest.mark.parametrize(("variables", "encoding"), [({"QWCHAT_PLAIN": "on"}, "utf-8"), ({}, "iso-8859-1")])
def test_screen_readers_and_terminals_without_lines_get_plain_columns(
    write: Any, variables: dict[str, str], encoding: str
) -> None:
    assert write(80, encoding, **variables).table(COLUMNS, ROWS) == PLAIN


def test_text_that_is_not_in_a_table_is_harmless_on_every_terminal(write: Any) -> None:
    for encoding in ("utf-8", "iso-8859-1"):
        writer = write(80, encoding)
        writer.write(writer.paragraph("a\x1b[31m"))
        assert cast(Stream, sys.stdout).getvalue() == "a␛[31m\n"


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_config_show_in_a_terminal(tmp_path: Path, columns: int) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "qwchat.toml").write_text(f'system = "{"long " * 20}"\ntemp = 0.5\n')
    with Terminal("config", "show", models=tmp_path, folder=folder, columns=columns) as terminal:
        assert terminal.end() == 0
        lines = terminal.text.split("\n")
    start = next(number for number, line in enumerate(lines) if line.startswith("setting"))
    assert set(lines[start + 1]) == {"─"}
    assert re.fullmatch(r"model +mini +built in", lines[start + 2])
    assert re.fullmatch(r"plain +off +built in", lines[-2])
    assert max(map(len, lines)) <= columns
    origin = "".join(line[lines[start].index("from") :] for line in lines[start + 3 : lines.index(lines[-1])])
    assert str(folder / "qwchat.toml") in origin


def test_doctor_in_a_terminal(tmp_path: Path) -> None:
    with Terminal("doctor", models=tmp_path, columns=60, rows=60) as terminal:
        assert terminal.end() in (0, 1)
        lines = terminal.text.split("\n")
    # A busy machine adds a warning, whose word is wider.
    assert re.match(r"ok +program +qwchat ", lines[0])
    start = lines[0].index("program")
    assert all(line[:start].strip() in ("ok", "warning", "error", "") for line in lines)
    assert max(map(len, lines)) <= 60
    in_pipe = call("doctor", models=tmp_path).stdout.decode().split("\n")
    assert in_pipe[0].startswith("ok       program        qwchat ")


@pytest.mark.parametrize(
    "arguments", [("list",), ("doctor",), ("sessions", "list"), ("config", "show"), ("show", "mini")]
)
def test_tables_in_a_pipe_do_not_import_rich(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    program = (
        "import sys\nfrom qwchat.cli.main import main\ntry:\n    main()\nfinally:\n"
        "    print('rich' in sys.modules, file=sys.stderr)"
    )
    variables = {**os.environ, "HOME": str(tmp_path), "QWCHAT_SESSIONS": str(tmp_path / "sessions")}
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, env=variables)
    assert done.stderr.decode().split("\n")[-2] == "False"


BENCH = [
    ("prefill", "512", "0", "771.8", "740.6", "775.4", "552.3 GOPS", "60.6 %", "911 GOPS int8 peak"),
    ("decode", "64", "0", "74.8", "56.3", "78.9", "25.9 GB/s", "77.8 %", "33.3 GB/s read bandwidth"),
]
BENCH_AT = {
    120: """\
         tokens  depth  tok/s  lowest  highest        rate   share  of
────────────────────────────────────────────────────────────────────────────────────────────
prefill     512      0  771.8   740.6    775.4  552.3 GOPS  60.6 %  911 GOPS int8 peak
decode       64      0   74.8    56.3     78.9   25.9 GB/s  77.8 %  33.3 GB/s read bandwidth""",
    80: """\
         tokens  depth  tok/s  lowest  highest        rate   share  of
────────────────────────────────────────────────────────────────────────────────
prefill     512      0  771.8   740.6    775.4  552.3 GOPS  60.6 %  911 GOPS
                                                                    int8 peak
decode       64      0   74.8    56.3     78.9   25.9 GB/s  77.8 %  33.3 GB/s
                                                                    read
                                                                    bandwidth""",
    40: """\
         tok/s   share  of
────────────────────────────────────────
prefill  771.8  60.6 %  911 GOPS int8
                        peak
decode    74.8  77.8 %  33.3 GB/s read
                        bandwidth
columns not shown: tokens, depth,
lowest, highest, rate""",
}


@pytest.mark.parametrize("columns", BENCH_AT)
def test_bench_keeps_speed_and_share(write: Any, columns: int) -> None:
    assert plain(write(columns).table(bench._COLUMNS, BENCH)) == BENCH_AT[columns]


SESSIONS = [
    ("f397", "2026-11-24 02:03", "2", "mini", "sums · What is 2+2?"),
    ("5e44", "2026-11-24 02:02", "12", "qwen2-7b-instruct-q4", "海と湖の名前を三つずつ教えてください"),
]
SESSIONS_AT = {
    120: """\
id    last used         messages  model                 title
────────────────────────────────────────────────────────────────────────────────────────────
f397  2026-11-24 02:03         2  mini                  sums · What is 2+2?
5e44  2026-11-24 02:02        12  qwen2-7b-instruct-q4  海と湖の名前を三つずつ教えてください""",
    80: """\
id    last used         messages  model                 title
────────────────────────────────────────────────────────────────────────────────
f397  2026-11-24 02:03         2  mini                  sums · What is 2+2?
5e44  2026-11-24 02:02        12  qwen2-7b-instruct-q4  海と湖の名前を三つずつ教
                                                        えてください""",
    40: """\
id    last used         title
────────────────────────────────────────
f397  2026-11-24 02:03  sums · What is
                        2+2?
5e44  2026-11-24 02:02  海と湖の名前を三
                        つずつ教えてくだ
                        さい
columns not shown: messages, model""",
}


@pytest.mark.parametrize("columns", SESSIONS_AT)
def test_sessions_keep_their_id_and_title(write: Any, columns: int) -> None:
    assert plain(write(columns).table(sessions._COLUMNS, SESSIONS)) == SESSIONS_AT[columns]


MODELS = [
    ("mini-q4", "q4", "5.43", "3.9 MB", "qwen2", "-", "2026-11-24 02:03", ""),
    ("Qwen2-7B-Instruct", "-", "-", "15.2 GB", "qwen2", "apache-2.0", "-", "checkpoint, converted on first use"),
]
MODELS_AT = {
    120: """\
name               preset  bits/weight     size  family  licence     last used
────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
mini-q4            q4             5.43   3.9 MB  qwen2   -           2026-11-24 02:03
Qwen2-7B-Instruct  -                 -  15.2 GB  qwen2   apache-2.0  -                 checkpoint, converted on first
                                                                                       use""",
    80: """\
name               preset  bits/weight     size  last used
────────────────────────────────────────────────────────────────────────────────
mini-q4            q4             5.43   3.9 MB  2026-11-24 02:03
Qwen2-7B-Instruct  -                 -  15.2 GB  -                 checkpoint,
                                                                   converted on
                                                                   first use
columns not shown: family, licence""",
    40: """\
name                  size
────────────────────────────────────────
mini-q4             3.9 MB
Qwen2-7B-Instruct  15.2 GB  checkpoint,
                            converted on
                            first use
columns not shown: preset, bits/weight,
family, licence, last used""",
}


@pytest.mark.parametrize("columns", MODELS_AT)
def test_models_keep_their_name_and_size(write: Any, columns: int) -> None:
    assert plain(write(columns).table(list_models._COLUMNS, MODELS)) == MODELS_AT[columns]
