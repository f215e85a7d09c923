"""File names of GGUF models: split parts, and the models of a folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from quant.errors import CheckpointError
from quant.gguf_names import GgufName, find_gguf, gguf_models, models_in, parse_name, part_names, parts_of


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("qwen2-q4_0.gguf", GgufName("qwen2-q4_0", 0, 0, ".gguf")),
        ("Qwen2.GGUF", GgufName("Qwen2", 0, 0, ".GGUF")),
        ("x-00002-of-00003.gguf", GgufName("x", 2, 3, ".gguf")),
        ("x-00001-of-00001.gguf", GgufName("x", 1, 1, ".gguf")),
        ("a-00001-of-00002-00003-of-00004.gguf", GgufName("a-00001-of-00002", 3, 4, ".gguf")),
        ("x-00004-of-00003.gguf", GgufName("x-00004-of-00003", 0, 0, ".gguf")),
        ("x-00000-of-00003.gguf", GgufName("x-00000-of-00003", 0, 0, ".gguf")),
        ("x-1-of-3.gguf", GgufName("x-1-of-3", 0, 0, ".gguf")),
        ("new\nline.gguf", GgufName("new\nline", 0, 0, ".gguf")),
        (".gguf", None),
        ("x.gguf.part", None),
        ("", None),
    ],
)
def test_names(name: str, parsed: GgufName | None) -> None:
    assert parse_name(name) == parsed
    if parsed is not None:
        assert part_names(name)[max(0, parsed.number - 1)] == name


def test_any_part_names_all_parts(tmp_path: Path) -> None:
    expected = [tmp_path / f"x-0000{number}-of-00003.gguf" for number in (1, 2, 3)]
    for part in expected:
        assert parts_of(part) == expected
    assert parts_of(tmp_path / "x.gguf") == [tmp_path / "x.gguf"]
    assert part_names("Q4_K_M/x-00002-of-00002.gguf") == [f"Q4_K_M/x-0000{n}-of-00002.gguf" for n in (1, 2)]


def test_files_are_grouped_by_model() -> None:
    names = ["b.gguf", "Q8/a-00002-of-00002.gguf", "config.json", "Q8/a-00001-of-00002.gguf", "Q4/a.gguf"]
    assert models_in(names) == {
        "Q4/a.gguf": ["Q4/a.gguf"],
        "Q8/a-00001-of-00002.gguf": ["Q8/a-00001-of-00002.gguf", "Q8/a-00002-of-00002.gguf"],
        "b.gguf": ["b.gguf"],
    }


def test_a_folder_of_one_model_means_that_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path))} contains no GGUF file; give another"):
        find_gguf(tmp_path)
    (tmp_path / "folder.gguf").mkdir()
    for number in (1, 2):
        (tmp_path / f"a-0000{number}-of-00002.gguf").touch()
    assert find_gguf(tmp_path) == find_gguf(tmp_path / "a-00002-of-00002.gguf") == tmp_path / "a-00001-of-00002.gguf"
    (tmp_path / "b.gguf").touch()
    assert [path.name for path in gguf_models(tmp_path)] == ["a-00001-of-00002.gguf", "b.gguf"]
    message = r"contains 2 GGUF models \(a-00001-of-00002.gguf, b.gguf\); give one of the files$"
    with pytest.raises(CheckpointError, match=message):
        find_gguf(tmp_path)


def test_a_long_list_of_models_is_cut(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"{number:02d}{'x' * 150}.gguf").touch()
    with pytest.raises(CheckpointError) as caught:
        find_gguf(tmp_path)
    assert str(caught.value).count("…") == 11
    assert len(str(caught.value)) < 1500
