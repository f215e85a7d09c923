"""A served checkpoint and the program that pulls it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from tests.starter import Program, run_to_end, starter
from tests.store.hub_server import HubState

ENTRY = "tests.store.pulls:main"
SHAPE = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 6, "vocab_size": 2000}
SHARDS = 3


@dataclass
class Hub:
    """A served checkpoint, and the program that pulls it.

    Attributes:
        state: what is served.
        url: the address of the hub.
        source: the folder of the checkpoint.
        work: where everything of the program is.
    """

    state: HubState
    url: str
    source: Path
    work: Path

    @property
    def models(self) -> Path:
        return self.work / "models"

    def environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "QWCHAT_MODEL"))}
        extra = {"HF_ENDPOINT": self.url, "HF_HOME": str(self.work / "hub"), "QWCHAT_MODELS": str(self.models)}
        return {**kept, **extra, **changes}

    def start(self, *arguments: str, **changes: str) -> Program:
        """Start a pull without reading its output."""
        null = os.open(os.devnull, os.O_RDWR)
        try:
            words = ("pull", *arguments)
            return starter().start(words, self.environment(changes), Path.cwd(), (null, null, null), entry=ENTRY)
        finally:
            os.close(null)

    def run(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
        """Run a command to its end."""
        return run_to_end(arguments, self.environment(changes), entry=ENTRY)

    def pull(self, *arguments: str, **changes: str) -> tuple[int, str, str]:
        """Run a pull. Return exit code, output and errors."""
        ran = self.run("pull", *arguments, **changes)
        return ran.returncode, ran.stdout.decode(), ran.stderr.decode()

    def disk_bytes(self) -> int:
        """Return what the models folder takes of the disk."""
        total = 0
        for path in self.models.rglob("*"):
            try:
                total += path.stat().st_blocks * 512
            except FileNotFoundError:  # Removed in this moment.
                continue
        return total


def error_line(err: str) -> str:
    """Return the one line of an error. Fails if there are several, or a traceback."""
    [line] = [line for line in err.splitlines() if line.startswith("qwchat: error: ")]
    assert "Traceback" not in err
    return line.removeprefix("qwchat: error: ")


def assert_same(found: Path, expected: Path) -> None:
    """Compare all files but the manifest, whose record of the source differs, and leave nothing else behind."""
    names = sorted(path.name for path in expected.iterdir())
    assert sorted(path.name for path in found.iterdir()) == names
    for name in names:
        if name != "manifest.json":
            assert (found / name).read_bytes() == (expected / name).read_bytes(), name
    assert [path.name for path in found.parent.iterdir()] == [found.name]


def main() -> None:
    """Run qwchat without the pauses after broken connections.

    The disk is full after FULL_DISK_AFTER bytes of the download; with FREE_DISK it says that so many bytes are free.
    """
    import qwchat.store.hub_download as download
    from qwchat.cli.main import main as run
    from qwchat.store import shards

    download._PAUSE_SECONDS = 0.0
    if "FREE_DISK" in os.environ:
        free = int(os.environ["FREE_DISK"])
        shutil.disk_usage = lambda path: SimpleNamespace(free=free)  # type: ignore[assignment]
    if left := int(os.environ.get("FULL_DISK_AFTER", "0")):
        write = shards._ShardSink.write

        def write_until_full(sink: shards._ShardSink, data: memoryview) -> None:
            nonlocal left
            left -= len(data)
            if left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write(sink, data)

        shards._ShardSink.write = write_until_full  # type: ignore[method-assign]
    run()
