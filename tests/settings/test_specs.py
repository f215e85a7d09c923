"""The table of settings: unique names, valid defaults, the ranges of the sampler."""

from __future__ import annotations

import re
from typing import Any

import pytest

from qwchat.chat.reply_settings import SAMPLING_FIELDS
from qwchat.errors import UsageError
from qwchat.request import SamplingParams
from qwchat.settings.specs import SETTING_SPECS, SettingSpec, find_spec


@pytest.mark.parametrize("attribute", ["name", "flag", "variable", "parameter"])
def test_names_are_unique(attribute: str) -> None:
    names = [getattr(spec, attribute) for spec in SETTING_SPECS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("spec", SETTING_SPECS, ids=lambda spec: spec.name)
def test_an_entry_is_complete(spec: SettingSpec) -> None:
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", spec.name)
    assert spec.parameter.isidentifier()
    assert spec.help
    assert not spec.help.endswith(".")
    if spec.default is not None:
        assert spec.check(spec.value_type.to_toml(spec.default), "x") == spec.default
    if spec.none_word:
        assert spec.parse(spec.none_word, "x") is None
        assert spec.check(spec.to_toml(None), "x") is None


@pytest.mark.parametrize("spec", SETTING_SPECS, ids=lambda spec: spec.name)
def test_completions_are_valid_values(spec: SettingSpec) -> None:
    for word in spec.completions:
        value = spec.parse(word, "x")
        assert spec.to_text(value) == word


@pytest.mark.parametrize("name", SAMPLING_FIELDS)
@pytest.mark.parametrize("value", ["-3", "-2", "-0.1", "0", "1e-6", "1", "1.1", "2", "5", "5.1", "1e9", "nan", "inf"])
def test_the_ranges_are_those_of_the_sampler(name: str, value: str) -> None:
    number: Any = float(value)
    if name == "top-k" and number.is_integer():
        number = int(number)
    try:
        SamplingParams(**{SAMPLING_FIELDS[name]: number})
        sampler = True
    except UsageError:
        sampler = False
    try:
        assert find_spec(name).parse(str(number), name) == find_spec(name).check(number, name) == number
        table = True
    except UsageError:
        table = False
    assert table == sampler


# Integers without a limit in the help, which must not overflow a machine integer.
BOUNDLESS = ("top-k", "max-tokens", "ctx", "loop-guard", "bell", "snapshot-limit", "gpu-layers")


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("temp", "warm", "x must be a number from 0 to 5, not 'warm'"),
        ("temp", "9", "x must be from 0 to 5, not 9"),
        ("temp", "nan", "x must be from 0 to 5, not nan"),
        ("top-p", "0", "x must be above 0 to 1, not 0"),
        ("repeat-penalty", "-1", "x must be above 0, not -1"),
        ("top-k", "1.5", "x must be a whole number of at least 0, not '1.5'"),
        ("max-tokens", "0", "x must be at least 1, not 0"),
        *((name, str(2**70), f"x must be at most 2147483647, not {2**70}") for name in BOUNDLESS),
        ("top-k", "9" * 4_000, "x must be at most 2147483647, not a number with many digits"),
        ("seed", "9" * 4_000, "x must be from 0 to 18446744073709551615, not a number with many digits"),
        ("seed", "9" * 5_000, f"x must be a whole number from 0 to 18446744073709551615, not '{'9' * 56}..."),
        ("seed", "-1", "x must be from 0 to 18446744073709551615, not -1"),
        ("threads", "257", "x must be from 1 to 256, not 257"),
        ("kv", "f8", "x must be auto, f32 or q8, not 'f8'"),
        ("activations", "12", "x must be 8 or 16, not '12'"),
        ("activations", "", "x must be 8 or 16, not ''"),
        ("speculate", "maybe", "x must be on or off, not 'maybe'"),
        ("json-schema", "", "x must be a JSON schema or the name of its file, not ''"),
        ("stop", "", 'x must be a non-empty string or a list of them, such as ["a", "b"], not \'\''),
    ],
)
def test_invalid_values_are_refused(name: str, text: str, expected: str) -> None:
    with pytest.raises(UsageError) as error:
        find_spec(name).parse(text, "x")
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temp", True),
        ("temp", "0.7"),
        ("top-k", 1.0),
        ("top-k", False),
        ("speculate", 2),
        ("stop", ["a", ""]),
        ("stop", [1]),
        ("stop", {"a": 1}),
        ("kv", 8),
        ("activations", "16"),
        ("activations", 32),
        ("activations", 16.0),
        ("activations", True),
        ("system", ["a"]),
    ],
)
def test_values_in_files_must_have_the_right_type(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"^x must be "):
        find_spec(name).check(value, "x")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("The End", ("The End",)),
        ('["a", "b\\n"]', ("a", "b\n")),
        ("[INST]", ("[INST]",)),
        ("none", None),
    ],
)
def test_stop_strings_are_one_string_or_a_list(text: str, value: object) -> None:
    assert find_spec("stop").parse(text, "x") == value


@pytest.mark.parametrize(("text", "value"), [("on", True), ("False", False), ("YES", True), ("0", False)])
def test_booleans_accept_the_usual_words(text: str, value: bool) -> None:
    assert find_spec("speculate").parse(text, "x") is value


@pytest.mark.parametrize("name", ["top-p", "top_p", "--top-p", "TOP_P"])
def test_a_name_may_be_spelt_as_a_flag_or_variable(name: str) -> None:
    assert find_spec(name).name == "top-p"


def test_an_unknown_name_suggests_the_closest() -> None:
    with pytest.raises(UsageError, match=r"^there is no setting 'tmp': did you mean temp\?$"):
        find_spec("tmp")
    with pytest.raises(UsageError, match=r"^there is no setting 'zzz': choose from temp, top-p, "):
        find_spec("zzz", scopes=("reply",))
