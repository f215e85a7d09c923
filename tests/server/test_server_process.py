"""The program `qwchat serve`: its lines, signals and exit codes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from qwchat.cli import serve
from qwchat.cli.serve_options import ServeOptions
from qwchat.errors import ServerError, UsageError
from qwchat.server.tokens import read_token
from tests.cli.fake_qwchat import dependencies
from tests.clocks import PATIENCE_SECONDS, wait_for
from tests.server.processes import server_process
from tests.starter import REAL, run_to_end
from tests.test_house import REPOSITORY

TOKEN = "0123456789abcdef"
LONG = {"prompt": "a", "guided_regex": "[a-z]{5000}", "temperature": 2}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_a_signal_ends_the_server(mini_folder: Path, number: int, code: int) -> None:
    with server_process(mini_folder) as running:
        assert httpx2.get(f"{running.url}/health").json() == {"status": "ok"}
        assert running.end(number) == code
        first, second = running.errors.splitlines()
        assert first == f"serving mini-q4 at {running.url}/v1"
        assert second.startswith("qwchat: GET /health 200 0.")


@pytest.mark.slow
def test_a_greedy_reply_is_that_of_the_command_line(mini_folder: Path) -> None:
    question = "How do I convert a model?"
    printed = run_to_end(["-m", str(mini_folder), "-p", question, "--temp", "0"], {**os.environ}, entry=REAL)
    assert printed.returncode == 0, printed.stderr
    body = {"messages": [{"role": "user", "content": question}], "temperature": 0}
    with server_process(mini_folder) as running:
        found = httpx2.post(f"{running.url}/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS).json()
    assert found["choices"][0]["message"]["content"] + "\n" == printed.stdout.decode()


def test_other_commands_load_no_server(mini_folder: Path) -> None:
    program = f"""
import sys
from qwchat.cli.main import main
try:
    main(["-m", {str(mini_folder)!r}, "-p", "Hello", "--max-tokens", "1", "-q"])
except SystemExit as end:
    loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("starlette", "uvicorn", "h11", "anyio"))
    print(end.code, loaded, [name for name in sys.modules if name.startswith("qwchat.server")])
"""
    printed = subprocess.run(
        [sys.executable, "-c", program],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=True,
    )
    assert printed.stdout.splitlines()[-1] == "0 [] []"


@pytest.mark.slow
def test_a_running_reply_is_cut_at_the_end_and_waiting_ones_are_refused(mini_folder: Path) -> None:
    with server_process(mini_folder, "--quiet", "--ctx", "2048", shutdown_seconds=0.2) as running:
        body = {**LONG, "stream": True}
        with httpx2.stream("POST", f"{running.url}/v1/completions", json=body, timeout=PATIENCE_SECONDS) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert running.process.poll() is None
            running.process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        assert running.wait() == 0


def test_a_port_in_use_is_one_line(mini_folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServerError) as caught:
            serve.run(ServeOptions(port=port), dependencies())
    assert str(caught.value) == f"port {port} of 127.0.0.1 is in use: choose another with --port"


def test_missing_packages_are_named_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    with pytest.raises(ServerError) as caught:
        serve.run(ServeOptions(), dependencies())
    assert str(caught.value) == "qwchat serve needs uvicorn: pip install 'qwchat[serve]'"


def test_other_machines_need_a_token() -> None:
    with pytest.raises(UsageError) as caught:
        serve.run(ServeOptions(host="0.0.0.0", port=0), dependencies())
    assert "needs a token: set QWCHAT_SERVE_TOKEN or give --token-file" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"port": 70_000}, "--port must be from 0 to 65,535, not 70000"),
        ({"keep": 0}, "--keep must be from 1 to 256, not 0"),
        ({"queue": 0}, "--queue must be from 1 to 10,000, not 0"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        serve.run(ServeOptions(**options), dependencies())
    assert str(caught.value) == message


def test_the_token_comes_from_a_private_file_or_the_environment(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    assert read_token(file, {"QWCHAT_SERVE_TOKEN": "another-token-here"}) == TOKEN
    assert read_token(None, {"QWCHAT_SERVE_TOKEN": TOKEN}) == TOKEN
    assert read_token(None, {}) is read_token(None, {"QWCHAT_SERVE_TOKEN": ""}) is None
    for mode in (0o640, 0o604, 0o660):
        file.chmod(mode)
        with pytest.raises(UsageError, match="only you can access"):
            read_token(file, {})
    file.chmod(stat.S_IRUSR)
    for bad in ("short", "a" * 2000, "with a space in it 123", "ümläut-ümläut-ümläut", ""):
        with pytest.raises(UsageError):
            read_token(None, {"QWCHAT_SERVE_TOKEN": bad or " "})
    with pytest.raises(UsageError, match="cannot be read"):
        read_token(tmp_path / "missing", {})


@pytest.mark.slow
def test_a_token_works_over_the_network(mini_folder: Path) -> None:
    variables = {"QWCHAT_SERVE_TOKEN": TOKEN}
    with server_process(mini_folder, "--host", "0.0.0.0", variables=variables) as running:
        url = f"http://127.0.0.1:{running.port}/v1/models"
        assert httpx2.get(url).status_code == 401
        assert httpx2.get(url, headers={"Authorization": f"Bearer {TOKEN}", "Host": "box"}).status_code == 200
        wait_for(lambda: running.errors.count("\n") == 4, "the log")
        assert "requests and replies are not encrypted" in running.errors.splitlines()[0]
        assert TOKEN not in running.errors
