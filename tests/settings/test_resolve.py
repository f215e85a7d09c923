"""Precedence of the sources, refused settings, and messages that name their source."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, strategies

from quant.wording import first_argument
from qwchat.errors import UsageError
from qwchat.settings import config_files, editing
from qwchat.settings.resolve import Settings, resolve
from qwchat.settings.specs import SETTING_SPECS, SettingSpec, find_spec
from qwchat.settings.value_types import Boolean, TextList
from tests.clocks import cost_growth

PIECES = [
    *("temp", "top-k", "stop", "system", "seed", "speculate", "kv", "nothing", "as", "max-tokens", "[a]", "[[b]]"),
    *(" = ", "=", "\n", "\n", "\n", ".", "#", ",", "[", "]", "{", "}", '"""', '"', "'", "\\", "\x00", "é"),
    *(
        "1",
        "-1",
        "0.5",
        "nan",
        "inf",
        "true",
        "false",
        '"random"',
        '"none"',
        '"a"',
        '["a", "b"]',
        "1979-05-27",
        "9" * 400,
    ),
]


def settings(
    home: Path, flags: dict[str, str | bool | list[str]] | None = None, *, use_files: bool = True, **variables: str
) -> Settings:
    """Return the settings of a user with home folder `home` in its subfolder `work`."""
    work = home / "work"
    work.mkdir(exist_ok=True)
    environment = {"QWCHAT_CONFIG": str(home), **{f"QWCHAT_{name}": value for name, value in variables.items()}}
    return resolve(flags, environment=environment, folder=work, use_files=use_files)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_built_in_values_are_the_default(tmp_path: Path) -> None:
    found = settings(tmp_path)
    assert (found["kv"], found["speculate"], found["ctx"], found["stop"]) == ("auto", True, None, ())
    assert found.origin("kv") == "built in"
    assert "kv" not in found
    with pytest.raises(KeyError):
        found["nothing"]


def test_flags_override_variables_override_the_project_file_overrides_the_user_file(tmp_path: Path) -> None:
    user = write(tmp_path / "config.toml", "temp = 0.1\ntop-k = 1\nmin-p = 0.1\ntop-p = 0.1\n")
    project = write(tmp_path / "work" / ".qwchat.toml", "temp = 0.2\ntop-k = 2\nmin-p = 0.2\n")
    found = settings(tmp_path, {"temp": "0.4"}, TEMP="0.3", TOP_K="3")
    assert [(found[name], found.origin(name)) for name in ("temp", "top-k", "min-p", "top-p")] == [
        (0.4, "--temp"),
        (3, "QWCHAT_TOP_K"),
        (0.2, str(project)),
        (0.1, str(user)),
    ]


EXAMPLES = {"choices": "a,b", "regex": "a+", "json-schema": "{}"}


def example(spec: SettingSpec) -> str:
    """Return a value of a setting, as a user types it."""
    if spec.name in EXAMPLES:
        return EXAMPLES[spec.name]
    return spec.completions[-1] if spec.completions and spec.name != "as" else "1"


@pytest.mark.parametrize("spec", SETTING_SPECS, ids=lambda spec: spec.name)
def test_every_setting_is_a_flag_a_variable_and_a_key(tmp_path: Path, spec: SettingSpec) -> None:
    write(tmp_path / "personas" / "1.toml", "")
    text = example(spec)
    raw: str | bool | list[str] = [text] if isinstance(spec.value_type, TextList) else text
    by_flag = settings(tmp_path, {spec.name: raw if not isinstance(spec.value_type, Boolean) else text == "on"})
    by_variable = settings(tmp_path, **{spec.variable.removeprefix("QWCHAT_"): text})
    path = tmp_path / "config.toml"
    editing.change(path, spec, spec.parse(text, "x"))
    by_file = settings(tmp_path)
    assert by_flag[spec.name] == by_variable[spec.name] == by_file[spec.name] == spec.parse(text, "x")
    assert by_flag.origin(spec.name).removeprefix("--no-").removeprefix("--") == spec.name
    assert by_variable.origin(spec.name) == spec.variable
    assert by_file.origin(spec.name) == str(path)


def test_empty_variables_and_files_are_ignored(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", "this is not TOML")
    assert settings(tmp_path, TEMP="", use_files=False).given == {}


def test_a_higher_source_can_unset_a_value(tmp_path: Path) -> None:
    write(tmp_path / "config.toml", 'seed = 5\nstop = ["a", "b"]\nspeculate = false\nmax-tokens = 9\n')
    found = settings(tmp_path)
    assert (found["seed"], found["stop"], found["speculate"], found["max-tokens"]) == (5, ("a", "b"), False, 9)
    found = settings(tmp_path, {"seed": "random", "stop": ["none"], "speculate": True, "max-tokens": "none"})
    assert (found["seed"], found["stop"], found["speculate"], found["max-tokens"]) == (None, None, True, None)


def test_a_boolean_flag_is_named_as_given(tmp_path: Path) -> None:
    assert settings(tmp_path, {"speculate": False}).origin("speculate") == "--no-speculate"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("temp = 0.5\n\ntmp = 1\n", ":3: there is no setting 'tmp': did you mean temp?"),
        ("top_k = 1\n", ":1: there is no setting 'top_k': did you mean top-k?"),
        ('system = """\ntop-k = -1\n"""\n# a remark\ntop-k = -1\n', ":5: top-k must be at least 0, not -1"),
        ("stop = [\n  'a',\n  '',\n]\n", ":1: stop must be a non-empty string or a list of them"),
        ("kv = 'q8'\ntemp = 9\n", ":2: temp must be from 0 to 5, not 9"),
        ("[zzzz]\ntemp = 1\n", ":1: there is no setting 'zzzz': choose from model, endpoint, "),
        ("temp = 1\ntemp 2\n", ":2: expected '=' after a key in a key/value pair"),
        ("temp = 1\ntemp = 2\n", ":2: cannot overwrite a value"),
        ("a = " + "[" * 10_000, ""),
        ("top-k = " + "9" * 5_000, ":1: a word of 5,000 characters"),
        ("seed = 0x" + "f" * 5_000, ":1: a word of 5,002 characters"),
        ("seed = 0x" + "f" * 900, ":1: seed must be from 0 to 18446744073709551615, not a number with many digits"),
        ("x = 1979-13-45\n", ":1: "),
        ("temp = 1\na" + ".a" * 20_000 + " = 1\n", ":2: more than 4 parts in one key"),
        ("temp = " + "9" * 400, ":1: temp must be from 0 to 5, not a number with many digits"),
        ('"temp" = 9\n', ":1: temp must be from 0 to 5, not 9"),
        ("temp = nan\n", ":1: temp must be from 0 to 5, not nan"),
        ("x = 1979-05-27\n", ":1: there is no setting 'x'"),
    ],
)
def test_errors_in_a_file_name_the_line(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path / "config.toml", text)
    with pytest.raises(UsageError) as error:
        settings(tmp_path)
    assert str(error.value).startswith(f"{path}{complaint}")


def test_binary_and_large_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(b"temp = 1\nsystem = '\xff'\n")
    with pytest.raises(UsageError, match=r"config\.toml:2: not UTF-8 text \(0xff\): convert the file"):
        settings(tmp_path)
    path.write_bytes(b"#" * (config_files.MAX_CONFIG_BYTES + 1))
    with pytest.raises(UsageError, match="is larger than 64 KiB, the limit for a configuration file"):
        settings(tmp_path)
    path.write_bytes(b"\xef\xbb\xbftemp = 1\r\nsystem = 'a'\r\n")
    assert settings(tmp_path)["temp"] == 1.0


@pytest.mark.parametrize("name", ["model", "device", "quiet"])
def test_a_project_file_cannot_choose_models_or_paths(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "work" / "qwchat.toml", f"temp = 1\n{name} = 'x'\n")
    with pytest.raises(UsageError) as error:
        settings(tmp_path)
    assert str(error.value).startswith(f"{path}:2: a project file may not set {name}: give {name}, set QWCHAT_")
    assert first_argument(error.value) == name


def test_the_project_file_is_found_up_to_the_repository_root(tmp_path: Path) -> None:
    outer = write(tmp_path / ".qwchat.toml", "")
    inside = tmp_path / "repository" / "src" / "deep"
    inside.mkdir(parents=True)
    assert config_files.find_project_file(inside).path is None, (
        "outside a repository, only the working folder is searched"
    )
    assert config_files.find_project_file(tmp_path).path == outer
    (tmp_path / "repository" / ".git").mkdir()
    assert config_files.find_project_file(inside).path is None, "the search ends at the root of the repository"
    root = write(tmp_path / "repository" / "qwchat.toml", "")
    assert config_files.find_project_file(inside).path == root
    nearer = write(tmp_path / "repository" / "src" / "qwchat.toml", "")
    assert config_files.find_project_file(inside).path == nearer
    hidden = write(tmp_path / "repository" / "src" / ".qwchat.toml", "")
    assert config_files.find_project_file(inside).path == hidden


def test_a_deleted_working_folder_has_no_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert config_files.find_project_file() == config_files.ProjectFile()
    assert resolve({}, environment={"QWCHAT_CONFIG": str(tmp_path)})["temp"] is None


def test_a_project_file_of_another_user_is_ignored(tmp_path: Path) -> None:
    path = write(tmp_path / "work" / "qwchat.toml", "temp = 9")
    with (
        mock.patch.object(os, "getuid", return_value=path.stat().st_uid + 1),
        mock.patch.object(config_files, "_ROOT", -1),
    ):
        found = settings(tmp_path)
    assert found.notices == (f"{path} is ignored because it belongs to another user",)
    assert "temp" not in found


def test_an_inaccessible_configuration_folder_is_reported(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")  # This fails for the root user too.
    environment = {"QWCHAT_CONFIG": str(tmp_path / "loop")}
    (notice,) = resolve({}, environment=environment, folder=tmp_path).notices
    assert notice.startswith(
        f"{tmp_path}/loop/config.toml is not accessible (Too many levels of symbolic links) and is ignored"
    )
    assert resolve({}, environment=environment, folder=tmp_path, use_files=False).notices == ()


@pytest.mark.parametrize(
    ("flags", "variables", "complaint"),
    [
        ({"temp": "9"}, {}, "--temp must be from 0 to 5, not 9"),
        (
            {"stop": ["a", ""]},
            {},
            """--stop must be a non-empty string or a list of them, such as ["a", "b"], not ''""",
        ),
        ({}, {"TOP_K": "many"}, "QWCHAT_TOP_K must be a whole number of at least 0, not 'many'"),
    ],
)
def test_flags_and_variables_are_named(
    tmp_path: Path, flags: dict[str, str | bool | list[str]], variables: dict[str, str], complaint: str
) -> None:
    with pytest.raises(UsageError) as error:
        settings(tmp_path, flags, **variables)
    assert str(error.value).startswith(complaint)


@given(strategies.one_of(strategies.text(), strategies.lists(strategies.sampled_from(PIECES)).map("".join)))
def test_any_file_gives_settings_or_a_one_line_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    values, complaint = {}, str(path)
    try:
        values = config_files.checked_values(config_files.read(path))
    except UsageError as error:
        complaint = str(error)
    assert complaint.startswith(str(path))
    assert "\n" not in complaint
    assert all(values[name] == find_spec(name).check(find_spec(name).to_toml(values[name]), "x") for name in values)


def test_finding_an_error_takes_linear_time(tmp_path: Path) -> None:
    def search(lines: int) -> None:
        write(tmp_path / "config.toml", "# temp = 1\n" * lines + "temp = 9\n")
        with pytest.raises(UsageError, match=rf":{lines + 1}: temp must be from 0 to 5, not 9$"):
            settings(tmp_path)

    assert cost_growth(search, 600, 8) < 24  # Quadratic time would give 64.


def test_settings_of_a_project_file_are_marked(tmp_path: Path) -> None:
    project = write(tmp_path / "work" / "qwchat.toml", "temp = 0.2\n")
    assert settings(tmp_path).project == project
    assert settings(tmp_path, {"temp": "1"}).project is None
