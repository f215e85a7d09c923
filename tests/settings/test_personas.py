"""Personas: their files, their variables, and their rank among the sources of settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies
from hypothesis import settings as bounds

from qwchat.errors import UsageError
from qwchat.settings import personas
from qwchat.settings.resolve import resolve
from tests.tiers import count

POET = """\
description = "Speaks in verse"
system = \"\"\"
You are a poet of {place}, born in {year}. Answer {{"in": "JSON"}} or {not a name}.\"\"\"
temp = 1.2
stop = ["END"]

[variables]
place = "Rome"
"""


def folder(tmp_path: Path, **files: str) -> dict[str, str]:
    """Return the environment of a user with these personas."""
    place = tmp_path / "personas"
    place.mkdir(exist_ok=True)
    for name, text in files.items():
        (place / f"{name}.toml").write_text(text)
    return {"QWCHAT_CONFIG": str(tmp_path)}


def test_a_persona_has_the_contents_of_its_file(tmp_path: Path) -> None:
    environment = folder(tmp_path, poet=POET, plain="temp = 0")
    assert personas.names(environment) == ["plain", "poet"]
    poet = personas.read("poet", environment)
    assert (poet.description, poet.variables, poet.defaults) == (
        "Speaks in verse",
        ["place", "year"],
        {"place": "Rome"},
    )
    assert poet.fill_variables({"year": "1799"}) == {
        "system": 'You are a poet of Rome, born in 1799. Answer {"in": "JSON"} or {not a name}.',
        "temp": 1.2,
        "stop": ("END",),
    }
    assert poet.fill_variables({"year": "{place}", "place": "{{"})["system"].startswith(
        "You are a poet of {{, born in {place}."
    )  # type: ignore[union-attr]
    assert personas.read("plain", environment).fill_variables({}) == {"temp": 0.0}


@pytest.mark.parametrize(
    ("given_values", "expected"),
    [
        ({}, "persona poet needs year"),
        ({"yaer": "1"}, "persona poet has no variable 'yaer': did you mean year?"),
        ({"zzz": "1"}, "persona poet has no variable 'zzz': its variables are place, year"),
    ],
)
def test_missing_and_unknown_variables(tmp_path: Path, given_values: dict[str, str], expected: str) -> None:
    poet = personas.read("poet", folder(tmp_path, poet=POET))
    with pytest.raises(UsageError) as error:
        poet.fill_variables(given_values)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("temp = 1\nctx = 4096\n", ":2: a persona cannot set ctx"),
        ("sytem = 'a'\n", ":1: there is no setting 'sytem': did you mean system?"),
        ("temp = 9\n", ":1: temp must be from 0 to 5, not 9"),
        ("description = 1\n", ":1: description must be a string"),
        ("variables = 1\n", ":1: variables must be a table such as [variables]"),
        ("system = '{a}'\n[variables]\na = 1\n", ":3: a must be a string in quotes"),
        ("system = '{a}'\n[variables]\na = 'x'\nb = 'y'\n", ":4: the system prompt does not use {b}"),
        ("system =", ":1: invalid value"),
    ],
)
def test_errors_name_their_line(tmp_path: Path, text: str, expected: str) -> None:
    environment = folder(tmp_path, x=text)
    with pytest.raises(UsageError) as error:
        personas.read("x", environment)
    assert str(error.value).startswith(f"{tmp_path}/personas/x.toml{expected}")


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b", "/etc/passwd", "-x", "é", "x" * 201])
def test_a_path_is_not_a_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"is not a valid persona name: use up to 200 letters"):
        personas.read(name, folder(tmp_path))


def test_a_long_name_is_shortened(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        personas.read("9" * 4_000, folder(tmp_path))
    assert str(error.value).startswith(f"'{'9' * 60}…' is not a valid persona name")


def test_an_unknown_persona_suggests_the_closest(tmp_path: Path) -> None:
    environment = folder(tmp_path)
    with pytest.raises(
        UsageError, match=r"^there is no persona 'poet': .*personas contains no personas \(/save-persona "
    ):
        personas.read("poet", environment)
    folder(tmp_path, poet=POET, plain="")
    (tmp_path / "personas" / "peot.toml").mkdir()  # There is no such file.
    with pytest.raises(UsageError, match=r"^there is no persona 'peot': did you mean poet\?$"):
        personas.read("peot", environment)
    with pytest.raises(UsageError, match=r"^there is no persona 'zzz': choose from plain, poet$"):
        personas.read("zzz", environment)


def test_a_persona_ranks_below_the_source_that_names_it(tmp_path: Path) -> None:
    environment = folder(tmp_path, poet="temp = 1.2\ntop-k = 12\nmin-p = 0.12\nsystem = 'Rhyme.'")
    (tmp_path / "config.toml").write_text("top-k = 3\nmin-p = 0.3\nsystem = 'Be brief.'\n")
    variables = {**environment, "QWCHAT_MIN_P": "0.2"}

    def found(flags: dict[str, str | bool | list[str]], variables: dict[str, str]) -> list[tuple[object, str]]:
        settings = resolve(flags, environment=variables, folder=tmp_path)
        return [(settings[name], settings.origin(name)) for name in ("temp", "top-k", "min-p", "system")]

    user, poet = str(tmp_path / "config.toml"), "persona poet"
    assert found({"as": "poet", "temp": "0.1"}, variables) == [
        (0.1, "--temp"),
        (12, poet),
        (0.12, poet),
        ("Rhyme.", poet),
    ]
    assert found({}, {**variables, "QWCHAT_AS": "poet"}) == [
        (1.2, poet),
        (12, poet),
        (0.2, "QWCHAT_MIN_P"),
        ("Rhyme.", poet),
    ]
    (tmp_path / "config.toml").write_text("top-k = 3\nas = 'poet'\n")
    assert found({}, variables) == [(1.2, poet), (3, user), (0.2, "QWCHAT_MIN_P"), ("Rhyme.", poet)]
    assert found({"as": "none"}, environment)[0] == (None, "built in")


def test_variables_need_a_persona(tmp_path: Path) -> None:
    environment = folder(tmp_path, poet=POET)
    filled = resolve({"as": "poet"}, environment=environment, folder=tmp_path, variables={"year": "1799"})
    assert filled["system"].startswith("You are a poet of Rome, born in 1799.")
    with pytest.raises(UsageError, match=r"^there is no persona for variables: choose one with as=…$"):
        resolve({}, environment=environment, folder=tmp_path, variables={"year": "1799"})
    assert personas.parse_assignments(["a=b=c", "d="]) == {"a": "b=c", "d": ""}
    with pytest.raises(UsageError, match=r"^give a variable as name=value, not 'year'$"):
        personas.parse_assignments(["year"])


@bounds(max_examples=count(100, 20), deadline=None)
@given(system=strategies.text(), stop=strategies.lists(strategies.text(min_size=1), min_size=1, max_size=3))
def test_a_saved_persona_is_read_back(tmp_path_factory: pytest.TempPathFactory, system: str, stop: list[str]) -> None:
    environment = {"QWCHAT_CONFIG": str(tmp_path_factory.getbasetemp() / "saved")}
    values = {"system": system, "stop": tuple(stop), "temp": 0.25, "speculate": False, "seed": None}
    personas.write("saved", values, environment)
    assert personas.read("saved", environment).fill_variables({}) == values
