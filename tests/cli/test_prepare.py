"""What is shown while the kernels are compiled, as exact text."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwchat.cli.prepare import compile_once
from qwchat.cli.services import Services, kernel_cache_trouble
from qwchat.cli.streams import Streams
from qwchat.errors import QwchatError
from qwchat.kernels import objects

PLAIN = "qwchat: compiling the kernels for this processor, once; this takes some ten seconds\n"


class Errors(io.StringIO):
    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def shown(
    monkeypatch: pytest.MonkeyPatch,
    *,
    terminal: bool,
    quiet: bool = False,
    compiled: bool = False,
    trouble: str | None = None,
    fail: bool = False,
) -> str:
    errors = Errors(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")

    def compile_kernels(progress: Callable[[int, int, str], None]) -> None:
        assert not compiled
        progress(0, 2, "run tile")
        if fail:
            raise QwchatError("no")
        progress(1, 2, "forward")

    services = Services(compiled=lambda: compiled, cache_trouble=lambda: trouble, compile=compile_kernels)
    compile_once(services, Streams("never", quiet=quiet))
    return errors.getvalue()


def test_a_terminal_sees_each_kernel_and_then_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "\r\x1b[Kcompiling the kernels for this processor, once: "
    assert shown(monkeypatch, terminal=True) == f"{line}1 of 2, run tile{line}2 of 2, forward\r\x1b[K"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, PLAIN),
        ({"trouble": "the cache is damaged"}, "qwchat: the cache is damaged\n" + PLAIN),
        ({"quiet": True}, ""),
        ({"quiet": True, "trouble": "the cache is damaged"}, ""),
        ({"compiled": True}, ""),
    ],
)
def test_elsewhere_it_is_one_line_or_none(options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=False, **options) == text


def test_quiet_holds_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, quiet=True) == ""


def test_a_failure_erases_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QwchatError):
        shown(monkeypatch, terminal=True, fail=True)
    assert isinstance(sys.stderr, Errors)
    assert sys.stderr.getvalue().endswith("\r\x1b[K")


def test_a_cache_with_trouble_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(objects, "cache_folder", lambda: folder)
    monkeypatch.setattr(objects, "writable_folder", lambda: folder)
    assert kernel_cache_trouble() is None
    (folder / "objects").write_bytes(b"nonsense")
    assert kernel_cache_trouble() == "the compiled kernels in the cache are damaged and are made again"
    monkeypatch.setattr(objects, "writable_folder", lambda: tmp_path / "elsewhere")
    assert str(kernel_cache_trouble()).startswith(f"compiled kernels cannot be kept in {tmp_path}, which is not yours")
