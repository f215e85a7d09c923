"""Progress of a first run while it compiles and converts, as exact text."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant.conversion import CompilingQuantiser, ConversionAdvanced, ConversionFinished, ConversionPlanned
from qwchat.cli import ensure_model as module
from qwchat.cli.convert_progress import run_conversion
from qwchat.cli.dependencies import Dependencies, kernel_cache_problem
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.setup_progress import SetupProgress
from qwchat.cli.streams import Streams
from qwchat.cpu.kernels.kernel_store import KERNELS
from qwchat.errors import QwchatError
from qwchat.models_folder import LocatedModel

PLAIN = "qwchat: compiling the kernels for this processor (once)\n"
WAITING = "qwchat: another qwchat is compiling the kernels: waiting for it\n"
START = "\r\x1b[Kone-time setup: [....................] 0 %: "


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
    busy: bool = False,
) -> str:
    errors = Errors(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("qwchat.chat.view.setup_status._FRAME_SECONDS", 3600)
    monkeypatch.setattr(module.models_folder, "locate", lambda model: LocatedModel("m", Path("m"), converted=True))

    def compile_kernels(progress: Callable[[str, float], None], waiting: Callable[[], object]) -> None:
        assert not compiled
        if busy:
            waiting()
            return
        progress("the compiler", 0)
        progress("run_tile", 1)
        if fail:
            raise QwchatError("no")

    dependencies = Dependencies(
        compiled=lambda: compiled, cache_problem=lambda: trouble, compile=compile_kernels, kernel_compile_cost=lambda: 4
    )
    ensure_model("m", dependencies, Streams("never", quiet=quiet))
    return errors.getvalue()


def test_a_terminal_shows_each_kernel_and_then_clears_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = f"{START}loading the compiler{START}compiling run tile\r\x1b[K"
    assert shown(monkeypatch, terminal=True) == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, PLAIN),
        ({"trouble": "the cache is damaged"}, "qwchat: the cache is damaged\n" + PLAIN),
        ({"quiet": True}, ""),
        ({"quiet": True, "trouble": "the cache is damaged"}, ""),
        ({"compiled": True}, ""),
        ({"busy": True}, WAITING),
        ({"busy": True, "quiet": True}, ""),
    ],
)
def test_other_outputs_get_at_most_one_line(
    options: dict[str, Any], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown(monkeypatch, terminal=False, **options) == text


def test_a_process_that_waits_says_so_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, busy=True) == WAITING


def test_quiet_applies_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, terminal=True, quiet=True) == ""


def test_a_failure_clears_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(QwchatError):
        shown(monkeypatch, terminal=True, fail=True)
    assert isinstance(sys.stderr, Errors)
    assert sys.stderr.getvalue().endswith("\r\x1b[K")


def test_a_conversion_and_the_kernels_share_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = Errors(terminal=True)
    monkeypatch.setattr(sys, "stderr", errors)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("qwchat.chat.view.setup_status._FRAME_SECONDS", 3600)
    events = [
        ConversionPlanned(80_000_000, 1, (), 4.5, "q4"),  # two units
        CompilingQuantiser("", 0),
        CompilingQuantiser("q8", 1),
        ConversionAdvanced(40_000_000),
        ConversionAdvanced(80_000_000),
        ConversionFinished(Path("m"), 4.5, 1.0),
    ]
    streams = Streams("never")
    with SetupProgress(streams, "kernels", 4, clock=lambda: 0.0) as setup:
        assert run_conversion((event for event in events), "converting m", streams, setup=setup).finished is not None
        setup.expect_no_conversion()
        setup.compiling("forward", 4)
    frames = re.findall(r"(\d+) %.*?: ([a-z0-9 ]+)", errors.getvalue())
    assert frames == [
        ("0", "loading the compiler"),
        ("0", "compiling q8"),
        ("16", "converting m"),
        ("42", "compiling forward"),
    ]


def test_a_problem_with_the_cache_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "kernels"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr(KERNELS, "folder", folder)
    monkeypatch.setattr(KERNELS, "writable_folder", folder)
    assert kernel_cache_problem() is None
    (folder / "objects").write_bytes(b"nonsense")
    assert kernel_cache_problem() == "the cached kernels are damaged and will be compiled again"
    monkeypatch.setattr(KERNELS, "writable_folder", tmp_path / "elsewhere")
    assert str(kernel_cache_problem()).startswith(
        f"cannot cache compiled kernels in {tmp_path}, which must be writable"
    )
