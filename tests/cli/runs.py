"""Run the command line with the scripted model, in its own process or, where that is enough, in this one."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest import mock

from qwchat.cli.app import run_app
from qwchat.cli.guard import run_guarded
from tests.cli.fake_qwchat import dependencies
from tests.clocks import PATIENCE_SECONDS
from tests.starter import run_to_end

FAKE = Path(__file__).with_name("fake_qwchat.py")


def environment(models: Path, **script: Any) -> dict[str, str]:
    """Return the environment of a run whose default model follows `script`."""
    folder = models / "mini"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text("{}")
    home = models / "home"
    home.mkdir(exist_ok=True)
    return {
        **os.environ,
        "QWCHAT_MODELS": str(models),
        "QWCHAT_FAKE": json.dumps(script),
        "QWCHAT_SESSIONS": str(home / "sessions"),
        "XDG_STATE_HOME": str(home),
        "XDG_CONFIG_HOME": str(home),
        "HOME": str(home),
        "TERM": "xterm-256color",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def run(
    *arguments: str,
    models: Path,
    stdin: bytes = b"",
    timeout: float = PATIENCE_SECONDS,
    variables: Mapping[str, str] | None = None,
    **script: Any,
) -> subprocess.CompletedProcess[bytes]:
    """Run `qwchat ARGUMENTS` without a terminal, with `stdin` piped in, in a fork that has the program imported."""
    return run_to_end(arguments, environment(models, **script) | {**(variables or {})}, stdin, timeout)


def call(*arguments: str, models: Path, stdin: bytes = b"", **script: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `qwchat ARGUMENTS` in this process: fast, but without signals, pipes and interpreter exit."""
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    streams = {"stdin": io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"), "stdout": out, "stderr": err}
    with mock.patch.multiple(sys, **streams), mock.patch.dict(os.environ, environment(models, **script)):
        code = run_guarded(lambda: run_app(arguments, dependencies()), debug="--debug" in arguments)
    for stream in (out, err):
        stream.flush()
    return subprocess.CompletedProcess(arguments, code, out.buffer.getvalue(), err.buffer.getvalue())
