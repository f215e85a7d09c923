"""The pictures of the documentation show what the program shows."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest

from docs.pictures.__main__ import SCENES
from docs.pictures.comparing import differences, lines
from docs.pictures.drawing import again, animated, data_of
from docs.pictures.rows import BACKGROUND, Emulator, Row, Run, Style, rows_of
from docs.pictures.scene import HOME, Scene, home, other_home
from docs.pictures.terminal import Frame
from qwchat.models_folder import embedded_checkpoint, is_checkpoint

MOST_BYTES = 400_000
SCENE = pytest.mark.parametrize("scene", SCENES.values(), ids=SCENES)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with home(other_home()) as made:
        yield made


@SCENE
def test_a_picture_is_drawn_from_its_data_and_needs_nothing_else(scene: Scene) -> None:
    svg = scene.picture.read_text(encoding="utf-8")
    assert again(data_of(svg)) == svg, "drawn by hand or by another version: python -m docs.pictures draws it again"
    assert len(svg.encode()) < MOST_BYTES
    names = {element.tag.rpartition("}")[2] for element in ET.fromstring(svg).iter()}
    assert names <= {"svg", "title", "metadata", "style", "g", "rect", "circle", "text", "path"}
    addresses = set(re.findall(r"\w+://[^\"' ]+|url\([^)]*\)|@import", svg.partition("<style>")[2]))
    assert addresses == set()
    assert ("prefers-reduced-motion" in svg) == scene.moving


@SCENE
@pytest.mark.slow
@pytest.mark.timeout(1200)  # A benchmark beside other tests takes minutes.
@pytest.mark.skipif(not is_checkpoint(embedded_checkpoint()), reason="models/mini holds no weights")
def test_a_picture_shows_what_the_program_shows(scene: Scene, folder: Path) -> None:
    found = scene.differences(folder)
    assert not found, "\n".join(["python -m docs.pictures draws it again", *found])


def rows(text: str, columns: int = 40) -> tuple[Row, ...]:
    import pyte

    screen = Emulator(columns, 5)
    pyte.Stream(screen).feed(text.replace("\n", "\r\n"))
    return rows_of(screen)


def test_rows_of_a_screen() -> None:
    assert rows("a  \x1b[2mfaint\x1b[0m \x1b[1;31mred\x1b[0m\n\n漢字 x\x1b[7m \x1b[0m\n") == (
        (
            Run(0, "a", Style()),
            Run(3, "faint", Style(marks="faint")),
            Run(9, "red", Style("#f0717b", marks="bold")),
        ),
        (),
        (Run(0, "漢字 x", Style()), Run(6, " ", Style(BACKGROUND, "#d7dce5"))),
    )


def test_an_animation_is_at_rest_in_its_last_frame() -> None:
    frames = [Frame(0.0, rows("$ \nold")), Frame(1.0, rows("$ ls\nold")), Frame(3.0, rows("$ ls\nnew"))]
    svg = animated(frames, [2], 2, 40, "a title")
    assert again(data_of(svg)) == svg
    assert re.findall(r"@keyframes r(\d)\{(.*?)\}#r", svg) == [
        ("0", "0%{transform:translateY(-25px)}11.11%{transform:translateY(0px)}"),
        ("1", "0%{transform:translateY(-25px)}33.33%{transform:translateY(0px)}"),
    ]
    assert re.findall(r'translate\(0,(\d+)\)"><text[^>]*>(\w+|\$)<', svg) == [("25", "$"), ("25", "old")]
    assert "9s step-end infinite" in svg


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("12 ms · 1,234 tok/s", "1.20 s · 98.7 tok/s", True),
        ("────  7 %", "──  70 %", True),
        ("2 threads, avx512vnni", "8 threads, neon", True),
        ("\x1b[2m3 ms to first token · ctx 9\x1b[0m", "\x1b[2m3 ms · prefill 9/s · ctx 99\x1b[0m", True),
        ("in /tmp/qwchat/models", "in /tmp/qabcde/models", True),
        ("a reply", "an answer", False),
        ("a reply", "\x1b[1ma reply\x1b[0m", False),
        ("a reply", "a reply\nmore", False),
    ],
)
def test_words_and_looks_are_compared_and_figures_are_not(before: str, after: str, same: bool) -> None:
    shown, run = lines([rows(before)], HOME), lines([rows(after)], Path("/tmp/qabcde"))
    assert (differences(shown, run) == []) is same


def test_replies_are_left_out_where_they_end_at_another_place() -> None:
    shown = rows("\x1b[1m> \x1b[0mask\na\nb\n\x1b[2mstopped\x1b[0m\n\x1b[2m3 ms\x1b[0m")
    assert lines([shown], HOME, replies=False) == ["[bold]> []ask", "[faint]stopped", "[faint]#"]
    assert "[]b" in lines([shown], HOME)
