"""The texts of the mirror come from permissive packages, each once, and the held-out files are never trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from models.recipe.mirror import texts
from models.recipe.mirror.packages import KINDS, documents, separated
from models.recipe.mirror.plan import Plan
from models.recipe.mirror.texts import Repetitions, collect, held_out, joined, write

PROSE = "\n".join(f"Sentence {word} tells how the {word} function turns one value into another." for word in "abcdefgh")


def prose(number: int) -> str:
    """Return a text of which no eight words in a row are those of another."""
    return "\n".join(f"Line{number}x{line} says what value{number}x{line} is worth in words" for line in range(40))


def install(site: Path, name: str, version: str, licence: str, files: dict[str, str]) -> None:
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {name}\nVersion: {version}\nLicense-Expression: {licence}\n"
    )
    for file, text in files.items():
        (site / file).parent.mkdir(parents=True, exist_ok=True)
        (site / file).write_text(text)
    (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))


def plan_of(*names: str) -> Plan:
    plan = Plan.load()
    return replace(plan, texts=replace(plan.texts, packages=names))


def test_documentation_is_taken_out_of_the_source() -> None:
    source = f'"""Head.\n\n{PROSE}\n"""\n\nVALUE = 1\n\n\ndef f():\n    """Short."""\n    return VALUE\n'
    documentation, rest = separated(source)
    assert documentation.splitlines() == ["Head.", "", *PROSE.splitlines()]
    assert PROSE not in rest
    assert 'def f():\n    """Short."""\n    return VALUE' in rest


def test_what_is_no_python_gives_no_text() -> None:
    assert separated("def (") == ("", "")


@pytest.mark.parametrize(
    "licence", ["GPL-3.0-only", "LGPL-2.1-or-later", "MPL-2.0 AND MIT", "Proprietary", "MIT AND GPL-2.0"]
)
def test_other_licences_are_left_out(tmp_path: Path, licence: str, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path, "strict", "1.0", licence, {"strict/guide.md": prose(1)})
    assert list(documents(["strict"], [tmp_path], 10**6)) == []
    assert "strict: not installed with a permissive licence" in capsys.readouterr().err


def test_the_newest_version_counts(tmp_path: Path) -> None:
    for version, number in (("1.9", 1), ("1.10", 2)):
        install(tmp_path / version, "easy", version, "MIT", {"easy/guide.md": prose(number)})
    found = list(documents(["easy"], [tmp_path / "1.9", tmp_path / "1.10"], 10**6))
    assert [document.text for document in found] == [prose(2)]


def test_a_package_gives_a_bounded_text_and_all_its_licences(tmp_path: Path) -> None:
    files = {f"easy/guide{number}.md": prose(number) for number in range(9)}
    licences = {f"easy-1.dist-info/LICENSE{number}": prose(100 + number) for number in range(3)}
    install(tmp_path, "easy", "1", "Apache-2.0", {**files, **licences})
    found = list(documents(["easy"], [tmp_path], 2 * len(prose(0))))
    assert [document.kind for document in found].count("licences") == 3
    assert 2 <= [document.kind for document in found].count("documentation") <= 3


def test_nearly_the_same_text_is_a_repetition() -> None:
    repetitions = Repetitions()
    assert not repetitions.repeats(prose(1))
    assert repetitions.repeats(prose(1).replace("worth", "worthless", 2))
    assert not repetitions.repeats(prose(2))


def test_held_out_files_are_not_trained_on(tmp_path: Path) -> None:
    files = {f"easy/guide{number}.md": prose(number) for number in range(80)}
    install(tmp_path, "easy", "1", "MIT", {**files, "easy/copy.md": prose(0)})
    plan = plan_of("easy")
    found = collect(plan, [tmp_path])
    train, rest = found["documentation", "train"], found["documentation", "held-out"]
    apart = {d.text for d in documents(["easy"], [tmp_path], 10**6) if held_out(d, plan)}
    assert 1 <= len(rest) <= 20
    assert {text.strip() for text in rest} <= apart
    assert {text.strip() for text in train}.isdisjoint(apart)
    assert len(train) + len(rest) == 80
    assert collect(plan, [tmp_path]) == found


def test_each_kind_has_two_files(tmp_path: Path) -> None:
    found = {(kind, part): [f"{kind}\n{part}\n"] * 3 for kind in KINDS for part in texts.PARTS}
    write(found, tmp_path, 40)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{kind}-{part}.txt" for kind, part in found)
    assert (tmp_path / "source-train.txt").read_text() == "source\ntrain\n\nsource\ntrain\n\nsource\n"


def test_a_text_is_cut_at_a_line() -> None:
    assert joined(["one\ntwo\nthree\n"], 9) == "one\ntwo\n"


def test_shapes_of_the_plan_suit_every_format() -> None:
    models = Plan.load().models
    assert {name: model.shape.tied for name, model in models.items()} == {"mirror": False, "sliver": True}
    for model in models.values():
        shape = model.shape
        assert shape.hidden_size % 256 == shape.intermediate_size % 256 == shape.heads * shape.head_dim % 256 == 0
        assert model.rates[-1] == (model.steps, 0.0)
