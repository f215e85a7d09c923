"""The bytes of one file, from a hub that cuts, restarts, changes and hides them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiers
from tests.store.hub_server import HubState, serving

SIZE = 3_500_000
PROGRAM = """
import sys
from pathlib import Path
from qwchat.errors import HubError, ModelError
from qwchat.store import hub, hub_download
hub_download.time.sleep = lambda seconds: None

class File:
    def __init__(self, path):
        self.stream = path.open("r+b", buffering=0)
        self.stream.seek(0, 2)
    def write(self, data):
        assert self.stream.write(data) == len(data)
    def restart(self):
        self.stream.seek(0)
        self.stream.truncate()
        print("restarted")

repository = hub.find_repository("Qwen/Tiny")
start, *stop = map(int, sys.argv[2:])
try:
    file = repository.files["model.safetensors"]
    hub_download.download(repository, file, File(Path(sys.argv[1])), start, *stop)
except (HubError, ModelError, OSError) as error:
    print(type(error).__name__, error)
"""


@pytest.fixture
def state(tmp_path: Path) -> HubState:
    folder = tmp_path / "Tiny"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_text("{}")
    (folder / "model.safetensors").write_bytes(random.Random(3).randbytes(SIZE))
    return HubState({"Qwen/Tiny": folder})


@pytest.fixture
def url(state: HubState) -> Iterator[str]:
    with serving(state) as address:
        yield address


def fetch(state: HubState, url: str, path: Path, *bounds: int) -> str:
    """Download into `path`, which holds the bytes before the first bound, and return what was reported."""
    path.write_bytes(content(state)[: bounds[0]])
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path), *map(str, bounds)],
        env={**os.environ, "HF_ENDPOINT": url, "HF_HOME": str(path.parent / "hub"), "no_proxy": "*"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.replace(url, "URL")


def content(state: HubState) -> bytes:
    return (state.repositories["Qwen/Tiny"] / "model.safetensors").read_bytes()


@pytest.mark.parametrize("bounds", [(0,), (1,), (SIZE - 1,), (0, 1), (0, 1_200_000), (70_000, 2_300_000)])
def test_any_range_arrives(state: HubState, url: str, tmp_path: Path, bounds: tuple[int, ...]) -> None:
    assert fetch(state, url, tmp_path / "file", *bounds) == ""
    stop = bounds[1] if len(bounds) > 1 else SIZE
    assert (tmp_path / "file").read_bytes() == content(state)[:stop]


def test_cuts_lose_nothing(state: HubState, url: str, tmp_path: Path) -> None:
    for start in range(tiers.count(10, 1)):
        state.cuts = 10
        assert fetch(state, url, tmp_path / "file", start) == ""
        assert (tmp_path / "file").read_bytes() == content(state)
    # Some bytes were under way when a connection broke, and only those were sent twice.
    assert state.sent["model.safetensors"] <= tiers.count(10, 1) * (SIZE + 10 * (1 << 18))


def test_a_hub_that_ignores_ranges_sends_all(state: HubState, url: str, tmp_path: Path) -> None:
    state.ignoring_ranges = True
    assert fetch(state, url, tmp_path / "file", 1_000_000) == "restarted\n"
    assert (tmp_path / "file").read_bytes() == content(state)
    assert fetch(state, url, tmp_path / "file", 0, 1_000_000) == ""
    assert (tmp_path / "file").read_bytes() == content(state)[:1_000_000]


def test_a_body_without_a_length(state: HubState, url: str, tmp_path: Path) -> None:
    state.chunked = True
    assert fetch(state, url, tmp_path / "file", 0) == ""
    assert (tmp_path / "file").read_bytes() == content(state)


def test_a_file_that_grew_is_refused(state: HubState, url: str, tmp_path: Path) -> None:
    state.grown = 5
    for bounds in ((0,), (100,)):
        assert fetch(state, url, tmp_path / "file", *bounds) == (
            "HubError Qwen/Tiny: model.safetensors has another size than the hub has announced; pull again later\n"
        )
        assert (tmp_path / "file").stat().st_size == bounds[0]


def test_a_hub_that_sends_nothing_ends_the_download(state: HubState, url: str, tmp_path: Path) -> None:
    state.cut_at_once = 5
    assert fetch(state, url, tmp_path / "file", 0) == ""
    assert (tmp_path / "file").read_bytes() == content(state)
    state.cut_at_once = 100
    report = fetch(state, url, tmp_path / "file", 1_000)
    assert report == (
        "HubError Qwen/Tiny: model.safetensors: the connection failed (RemoteProtocolError); pull again to resume\n"
    )
    assert (tmp_path / "file").stat().st_size == 1_000


def test_a_body_that_is_always_too_short_ends_the_download(state: HubState, url: str, tmp_path: Path) -> None:
    state.chunked, state.grown = True, -100
    *restarts, report = fetch(state, url, tmp_path / "file", 0).splitlines()
    assert restarts == ["restarted"] * 6
    assert report == f"HubError Qwen/Tiny: model.safetensors ends at byte {SIZE - 100:,}; pull again to resume"
