"""The endpoint: which URLs are accepted, what they mean, and where its key may come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from qwchat.errors import UsageError
from qwchat.settings.endpoint import Endpoint
from qwchat.settings.endpoint_key import read_key
from qwchat.settings.resolve import resolve


@pytest.mark.parametrize(
    ("typed", "url", "root", "name"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1", "http://localhost:8000", "localhost:8000"),
        ("http://localhost:8000/v1/", "http://localhost:8000/v1", "http://localhost:8000", "localhost:8000"),
        ("https://Api.Example.org", "https://api.example.org/v1", "https://api.example.org", "api.example.org"),
        ("https://a.org/x/v1/chat/completions", "https://a.org/x/v1", "https://a.org/x", "a.org"),
        ("https://a.org/v1beta/openai/", "https://a.org/v1beta/openai", "https://a.org", "a.org"),
        ("https://a.org:444/llm", "https://a.org:444/llm/v1", "https://a.org:444/llm", "a.org:444"),
        ("http://[::1]:8000", "http://[::1]:8000/v1", "http://[::1]:8000", "[::1]:8000"),
    ],
)
def test_urls(typed: str, url: str, root: str, name: str) -> None:
    endpoint = Endpoint.parse(typed, "--endpoint")
    assert (endpoint.url, endpoint.name) == (url, name)
    assert endpoint.root.rstrip("/") == root
    assert Endpoint.parse(url, "--endpoint") == endpoint


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            "localhost:8000",
            "--endpoint must be a URL that begins with http:// or https://, such as http://localhost:8000",
        ),
        ("ftp://a.org", "--endpoint must be a URL that begins with http:// or https://, such as http://localhost:8000"),
        ("file:///etc/passwd", "--endpoint must be a URL that begins with"),
        (
            "https://me:sk-secret@a.org",
            "--endpoint must not contain a user or a password: remove them, and put a key into QWCHAT_ENDPOINT_KEY",
        ),
        ("https://sk-secret@a.org", "--endpoint must not contain a user or a password"),
        ("https://a.org/v1?key=1", "--endpoint must not contain ? or #: leave out what follows"),
        ("http://a.org:99999", "--endpoint: the port must be a number from 1 to 65535"),
        ("http://a.org\\@b.org/", "--endpoint must not contain a user"),
        ("http://a.org/\x1b[31m", "--endpoint is not a valid URL"),
        ("http://ä.org", "--endpoint is not a valid URL"),
        ("http://[::1", "--endpoint is not a valid URL"),
        ("http://", "--endpoint must be a URL"),
        ("http://:80", "--endpoint must name a host, such as http://localhost:8000"),
        ("http://a b.org", "--endpoint is not a valid URL"),
    ],
)
def test_refused_urls(typed: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Endpoint.parse(typed, "--endpoint")
    assert str(refused.value).startswith(message)
    assert "sk-secret" not in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("url", "loopback", "encrypted"),
    [
        ("http://localhost", True, True),
        ("http://127.8.9.10:1", True, True),
        ("http://[::1]", True, True),
        ("http://127.0.0.1.example.org", False, False),
        ("http://10.0.0.1", False, False),
        ("https://10.0.0.1", False, True),
    ],
)
def test_what_is_encrypted(url: str, loopback: bool, encrypted: bool) -> None:
    endpoint = Endpoint.parse(url, "url")
    assert (endpoint.is_loopback, endpoint.is_encrypted) == (loopback, encrypted)


def key_file(folder: Path, text: str = "sk-secret\n", mode: int = 0o600) -> Path:
    path = folder / "endpoint-key"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_keys(tmp_path: Path) -> None:
    environment = {"QWCHAT_CONFIG": str(tmp_path)}
    assert read_key(None, environment) is None
    path = key_file(tmp_path)
    found = read_key(None, environment)
    assert found is not None
    assert (found.header, found.source) == ("Bearer sk-secret", str(path))
    assert "sk-secret" not in repr(found)
    found = read_key(str(path), environment | {"QWCHAT_ENDPOINT_KEY": " sk-other "})
    assert found is not None
    assert (found.header, found.source) == ("Bearer sk-other", "QWCHAT_ENDPOINT_KEY")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = key_file(tmp_path, mode=mode)
    with pytest.raises(UsageError, match="must be a file that only you can read: run chmod 600"):
        read_key(str(path), {})


@pytest.mark.parametrize("text", ["", "sk-secret sk-more", "sk-secret\nsecond", "sk-\u00e9", "sk-\x1b[31m"])
def test_a_file_that_is_no_key(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError) as refused:
        read_key(str(key_file(tmp_path, text)), {})
    assert "does not contain a key" in str(refused.value)
    assert "sk-" not in str(refused.value)


def test_a_key_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(str(tmp_path / "missing"), {})


def test_who_may_name_an_endpoint(tmp_path: Path) -> None:
    """Refuse a project file, also if it names a persona of the user that names one."""
    environment = {"QWCHAT_CONFIG": str(tmp_path)}
    (tmp_path / "personas").mkdir()
    (tmp_path / "personas/work.toml").write_text('endpoint = "https://a.org"\nmodel = "big"\ntemp = 0.5\n')
    named = resolve({"as": "work"}, environment=environment, folder=tmp_path)
    assert (named["endpoint"], named["model"], named["temp"]) == ("https://a.org/v1", "big", 0.5)
    project = tmp_path / "project"
    project.mkdir()
    (project / ".qwchat.toml").write_text('as = "work"\n')
    chosen = resolve(environment=environment, folder=project)
    assert (chosen["endpoint"], chosen["model"], chosen["temp"]) == (None, "mini", 0.5)
    (project / ".qwchat.toml").write_text('endpoint = "https://a.org"\n')
    with pytest.raises(UsageError, match="a project file may not set endpoint"):
        resolve(environment=environment, folder=project)
