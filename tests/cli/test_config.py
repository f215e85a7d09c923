"""`qwchat config` shows, writes and checks settings."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from pathlib import Path
from unittest import mock

import pytest

from qwchat.cli.config import _NON_SETTING_VARIABLES
from tests.chat.pty import Terminal, without_styles
from tests.cli.runs import call

MODELS_OWN = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


def config(
    tmp_path: Path, *arguments: str, work: Path | None = None, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run `qwchat config ARGUMENTS` in the folder `work`, with variables set."""
    place = work or tmp_path / "work"
    place.mkdir(exist_ok=True)
    environment = {"QWCHAT_CONFIG": str(tmp_path / "own"), **variables}
    before = Path.cwd()
    os.chdir(place)
    try:
        with mock.patch.dict(os.environ, environment):
            return call("config", *arguments, models=tmp_path / "models")
    finally:
        os.chdir(before)


def rows(shown: bytes) -> dict[str, list[str]]:
    """Return value and origin by setting from the output of `config show`."""
    return {line.split()[0]: line.split(maxsplit=2)[1:] for line in shown.decode().splitlines()[1:]}


def test_show_names_the_origin_of_every_value(tmp_path: Path) -> None:
    (tmp_path / "models" / "mini").mkdir(parents=True)
    (tmp_path / "models" / "mini" / "generation_config.json").write_text(json.dumps(MODELS_OWN))
    own = tmp_path / "own" / "config.toml"
    own.parent.mkdir()
    own.write_text('temp = 0.3\nstop = ["a b", "c"]\n')
    project = tmp_path / "work" / "qwchat.toml"
    project.parent.mkdir()
    project.write_text("top-k = 3\nkv = 'q8'\n")
    result = config(tmp_path, QWCHAT_KV="f32")
    assert result.returncode == 0, result.stderr
    assert result.stdout.decode().splitlines()[0] == "setting            value      from"
    found = rows(result.stdout)
    assert found["temp"] == ["0.3", str(own)]
    assert found["top-k"] == ["3", str(project)]
    assert found["top-p"] == ["0.8", "the model's generation_config.json"]
    assert found["kv"] == ["f32", "QWCHAT_KV"]
    assert found["min-p"] == ["0", "built in"]
    assert found["model"] == ["mini", "built in"]
    assert config(tmp_path, "show", QWCHAT_KV="f32").stdout == result.stdout
    as_json = json.loads(config(tmp_path, "show", "--json").stdout)
    assert as_json["temp"] == {"value": 0.3, "from": str(own)}
    assert as_json["stop"] == {"value": ["a b", "c"], "from": str(own)}
    assert as_json["seed"] == {"value": None, "from": "built in"}


def test_set_keeps_comments_and_default_removes_a_setting(tmp_path: Path) -> None:
    own = tmp_path / "own" / "config.toml"
    result = config(tmp_path, "set", "temp", "0.3")
    assert result.stdout == b""
    assert result.stderr.decode() == f"qwchat: temp is 0.3 in {own}\n"
    assert stat.S_IMODE(own.stat().st_mode) == 0o600
    own.write_text("# mine\ntemp = 0.3  # not too wild\n\n# the rest\nseed=5\n")
    assert config(tmp_path, "set", "TEMP", "1").returncode == 0
    assert config(tmp_path, "set", "stop", '["a", "b"]').returncode == 0
    assert config(tmp_path, "set", "seed", "random").returncode == 0
    assert own.read_text() == ('# mine\ntemp = 1.0  # not too wild\n\n# the rest\nseed="random"\nstop = ["a", "b"]\n')
    assert config(tmp_path, "set", "temp", "default").stderr.decode() == f"qwchat: removed temp from {own}\n"
    assert config(tmp_path, "set", "temp", "default").stderr.decode() == f"qwchat: temp is not set in {own}\n"
    assert config(tmp_path, "get", "stop").stdout == b"'a' 'b'\n"


def test_set_takes_a_negative_number(tmp_path: Path) -> None:
    for words in (("presence-penalty", "-1.5"), ("presence-penalty", "--", "-1.5"), ("presence-penalty", "-.5")):
        assert config(tmp_path, "set", *words).returncode == 0
        assert config(tmp_path, "get", "presence-penalty").stdout.decode() == f"{float(words[-1]):g}\n"
    result = config(tmp_path, "set", "temp", "-1")
    assert result.stderr == b"qwchat: error: temp must be from 0 to 5, not -1\n"
    assert config(tmp_path, "set", "presence-penalty", "-1", "--projekt").returncode == 2


def test_set_names_the_source_that_overrides_it(tmp_path: Path) -> None:
    result = config(tmp_path, "set", "temp", "0.3", QWCHAT_TEMP="0.5")
    assert result.stderr.decode().splitlines()[1] == "qwchat: temp is still 0.5, from QWCHAT_TEMP"
    assert config(tmp_path, "get", "temp").stdout == b"0.3\n"


def test_a_long_value_is_shortened(tmp_path: Path) -> None:
    result = config(tmp_path, "set", "system", "x" * 5_000, QWCHAT_SYSTEM="y" * 5_000)
    written, in_force = result.stderr.decode().splitlines()
    assert written == f"qwchat: system is {'x' * 200}… in {tmp_path / 'own' / 'config.toml'}"
    assert in_force == f"qwchat: system is still {'y' * 200}…, from QWCHAT_SYSTEM"


def test_set_writes_through_a_link(tmp_path: Path) -> None:
    real = tmp_path / "dotfiles" / "qwchat.toml"
    real.parent.mkdir()
    real.write_text("# kept elsewhere\n")
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.toml").symlink_to(real)
    config(tmp_path, "set", "temp", "0.3")
    assert real.read_text() == "# kept elsewhere\ntemp = 0.3\n"
    assert (tmp_path / "own" / "config.toml").is_symlink()


def test_the_project_file(tmp_path: Path) -> None:
    project = tmp_path / "work" / ".qwchat.toml"
    assert config(tmp_path, "path", "--project").stdout.decode() == f"{project}\n"
    assert config(tmp_path, "path").stdout.decode() == f"{tmp_path / 'own' / 'config.toml'}\n"
    config(tmp_path, "set", "--project", "top-p", "0.9")
    assert project.read_text() == "top-p = 0.9\n"
    result = config(tmp_path, "set", "--project", "model", "/tmp/x")
    assert result.stderr == b"qwchat: error: a project file may not set model: leave --project out\n"
    assert result.returncode == 2


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("set", "tmp", "1"), "there is no setting 'tmp': did you mean temp?"),
        (("set", "temp", "9"), "temp must be from 0 to 5, not 9"),
        (("get", "tmp"), "there is no setting 'tmp': did you mean temp?"),
        (("sett",), "there is no command 'sett': did you mean qwchat config set?"),
        (("--json", "get", "temp"), "put options after 'get'"),
    ],
)
def test_invalid_commands_are_refused(tmp_path: Path, arguments: tuple[str, ...], complaint: str) -> None:
    result = config(tmp_path, *arguments)
    assert result.returncode == 2
    assert result.stderr.decode().startswith(f"qwchat: error: {complaint}")
    assert not (tmp_path / "own").exists()


def test_edit_offers_every_setting_and_checks_the_result(tmp_path: Path) -> None:
    own = tmp_path / "own" / "config.toml"
    assert config(tmp_path, "edit", VISUAL="", EDITOR="true").stderr.decode() == f"qwchat: {own} is valid\n"
    text = own.read_text()
    assert "# Nucleus sampling: probability mass (1 = off): a number above 0 to 1.\n#top-p = \n" in text
    assert '\n#seed = "random"\n' in text
    assert all(line.startswith("#") or not line for line in text.splitlines())
    own.write_text(text.replace('#seed = "random"', "seed = -1"))
    result = config(tmp_path, "edit", VISUAL="true")
    line = next(number for number, line in enumerate(own.read_text().splitlines(), 1) if line.startswith("seed"))
    assert result.stderr.decode().startswith(f"qwchat: error: {own}:{line}: seed must be from 0 to ")
    failed = config(tmp_path, "edit", EDITOR="false")
    assert failed.stderr.decode() == f"qwchat: error: false failed with exit code 1: check {own}\n"
    missing = config(tmp_path, "edit", EDITOR="/nowhere/editor")
    assert missing.stderr == (
        b"qwchat: error: cannot run /nowhere/editor: No such file or directory: set $EDITOR to an editor\n"
    )
    assert (failed.returncode, missing.returncode) == (1, 1)
    config(tmp_path, "edit", "--project", EDITOR="true")
    assert "#model" not in (tmp_path / "work" / ".qwchat.toml").read_text()


def test_check_finds_every_mistake(tmp_path: Path) -> None:
    assert config(tmp_path, "check").stdout == b""
    own = tmp_path / "own" / "config.toml"
    personas = tmp_path / "own" / "personas"
    personas.mkdir(parents=True)
    own.write_text("temp = 9\ntpo-k = 1\n")
    (personas / "poet.toml").write_text("system = 'a {place}'\nctx = 5\n")
    project = tmp_path / "work" / "qwchat.toml"
    project.write_text("device = 'cpu'\n")
    result = config(tmp_path, "check", QWCHAT_TMEP="1", QWCHAT_TOP_P="2", QWCHAT_SEED="")
    assert result.returncode == 2
    assert result.stdout == b""
    assert result.stderr.decode().splitlines() == [
        f"qwchat: error: {own}:1: temp must be from 0 to 5, not 9",
        f"qwchat: error: {own}:2: there is no setting 'tpo-k': did you mean top-k?",
        f"qwchat: error: {project}:1: a project file may not set device: give --device, set QWCHAT_DEVICE, "
        "or use your own file (qwchat config path)",
        f"qwchat: error: {personas / 'poet.toml'}:2: a persona cannot set ctx",
        "qwchat: error: unknown variable QWCHAT_FAKE",
        "qwchat: error: unknown variable QWCHAT_TMEP: did you mean QWCHAT_TEMP?",
        "qwchat: error: QWCHAT_TOP_P must be above 0 to 1, not 2",
    ]


def test_a_persona_must_exist(tmp_path: Path) -> None:
    own = tmp_path / "own" / "config.toml"
    complaint = "there is no persona 'poet': "
    assert config(tmp_path, "set", "as", "poet").stderr.decode().startswith(f"qwchat: error: {complaint}")
    assert not own.exists()
    own.parent.mkdir()
    own.write_text("as = 'poet'\n")
    with mock.patch("qwchat.cli.config._NON_SETTING_VARIABLES", (*_NON_SETTING_VARIABLES, "QWCHAT_FAKE")):
        assert config(tmp_path, "check").stderr.decode().startswith(f"qwchat: error: {complaint}")
        (tmp_path / "own" / "personas").mkdir()
        (tmp_path / "own" / "personas" / "poet.toml").write_text("temp = 1")
        assert config(tmp_path, "check").returncode == 0
    assert config(tmp_path, "set", "as", "poet").returncode == 0


def test_check_lists_valid_files(tmp_path: Path) -> None:
    config(tmp_path, "set", "temp", "1")
    config(tmp_path, "set", "--project", "temp", "1")
    with mock.patch("qwchat.cli.config._NON_SETTING_VARIABLES", (*_NON_SETTING_VARIABLES, "QWCHAT_FAKE")):
        result = config(tmp_path, "check")
    assert result.stderr == b""
    assert result.stdout.decode() == f"ok {tmp_path / 'own' / 'config.toml'}\nok {tmp_path / 'work' / '.qwchat.toml'}\n"
    assert result.returncode == 0


def test_help_needs_no_file(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "config.toml").write_text("this is not TOML")
    assert config(tmp_path, "--help").returncode == 0
    assert config(tmp_path, "path").returncode == 0
    with mock.patch.dict(os.environ, {"QWCHAT_CONFIG": str(tmp_path / "own")}):
        assert call("--help", models=tmp_path / "models").returncode == 0
        refused = call("-p", "hi", models=tmp_path / "models")
        assert refused.returncode == 2
        assert refused.stderr.decode().startswith(
            f"qwchat: error: {tmp_path}/own/config.toml:1: expected '=' after a key"
        )
        assert call("-p", "hi", "--no-config", models=tmp_path / "models").stdout == b"echo: hi\n"


def test_control_characters_of_a_project_file_are_sanitised(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / "qwchat.toml").write_text('system = "a\\u001b]0;title\\u0007\\nb"\n')
    for arguments, shown in ((["get", "system"], "a␛]0;title␇\nb"), (["show"], "system             a␛]0;title␇ b")):
        with Terminal("config", *arguments, models=tmp_path, folder=folder) as terminal:
            terminal.wait(shown)
            assert terminal.end() == 0
        assert b"\x1b" not in without_styles(terminal.raw)
    assert config(tmp_path, "get", "system").stdout == b"a\x1b]0;title\x07\nb\n"


def test_a_chat_reports_the_project_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "qwchat.toml"
    project.write_text("system = 'Be brief.'\n")
    monkeypatch.chdir(tmp_path)
    notices = f"qwchat: using settings from {project}; /set shows them\n".encode()
    result = call("chat", models=tmp_path / "models", stdin=b"/system\n")
    assert notices in result.stderr
    assert b"Be brief." in result.stderr
    assert notices not in call("chat", "--no-config", models=tmp_path / "models", stdin=b"/system\n").stderr
    assert notices not in call("chat", "-s", "Mine.", models=tmp_path / "models", stdin=b"/system\n").stderr
