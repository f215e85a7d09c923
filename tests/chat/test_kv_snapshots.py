"""KV snapshots beside sessions: when they are saved, used and removed, and that their failures disturb nothing."""

from __future__ import annotations

import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest

from qwchat.chat import kv_snapshots
from qwchat.chat.kv_snapshots import KVSnapshots, SnapshotMode
from qwchat.errors import SnapshotError


class Model:
    """A model with cached tokens whose snapshot consists of their bytes."""

    def __init__(self, tokens: int = 10, seconds: float = 10.0) -> None:
        self.cached_ids = np.arange(tokens)
        self.reevaluation_seconds = seconds
        self.trouble: Exception | None = None
        self.saved = 0

    @property
    def cache_bytes(self) -> int:
        return int(self.cached_ids.nbytes)

    def save_cache(self, path: Path) -> int:
        if self.trouble is not None:
            raise self.trouble
        self.saved += 1
        return path.write_bytes(self.cached_ids.tobytes())

    def restore_cache(self, path: Path) -> int:
        data = path.read_bytes()
        self.cached_ids = np.arange(0)
        if self.trouble is not None:
            raise self.trouble
        self.cached_ids = np.frombuffer(data, np.int64)
        return len(self.cached_ids)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    created = tmp_path / "sessions" / "one"
    created.mkdir(parents=True)
    return created


def snapshot_tokens(folder: Path) -> int:
    """Return the number of tokens in the snapshot of a session; -1 without a snapshot."""
    path = folder / "kv.snapshot"
    return path.stat().st_size // 8 if path.exists() else -1


@pytest.mark.parametrize(
    ("mode", "seconds", "tokens", "expected"),
    [
        ("auto", 10.0, 10, 10),
        ("auto", 0.4, 10, -1),  # Not worth a file.
        ("auto", 0.6, 10, 10),
        ("auto", 0.6, 20_000_000, -1),  # Writing 160 MB would take longer.
        ("on", 0.0, 10, 10),
        ("off", 10.0, 10, -1),
    ],
)
def test_when_a_snapshot_is_saved(folder: Path, mode: SnapshotMode, seconds: float, tokens: int, expected: int) -> None:
    (folder / "kv.snapshot").write_bytes(b"of an earlier visit")
    model = Model(seconds=seconds)
    model.cached_ids = np.broadcast_to(np.int64(1), tokens)
    assert KVSnapshots(model, mode, 1 << 30).save_or_remove(folder) is None
    assert snapshot_tokens(folder) == expected


def test_restoring_a_snapshot(folder: Path) -> None:
    assert KVSnapshots(Model(12), "auto", 1 << 20).save_or_remove(folder) is None
    os.utime(folder / "kv.snapshot", (0, 0))
    model = Model(0)
    snapshots = KVSnapshots(model, "auto", 1 << 20)
    assert snapshots.restore(folder) is None
    assert len(model.cached_ids) == 12
    assert (folder / "kv.snapshot").stat().st_mtime > 0
    # No new tokens were evaluated, so the snapshot is kept whatever it is worth.
    model.reevaluation_seconds = 0.0
    assert snapshots.save_or_remove(folder) is None
    assert (model.saved, snapshot_tokens(folder)) == (0, 12)
    model.cached_ids = np.arange(15)
    assert snapshots.save_or_remove(folder) is None
    assert snapshot_tokens(folder) == -1
    model.cached_ids, model.reevaluation_seconds = np.arange(16), 3.0
    snapshots.save_or_remove(folder)
    assert (model.saved, snapshot_tokens(folder)) == (1, 16)


def test_tokens_of_another_session_are_not_saved_here(folder: Path) -> None:
    model = Model(12)
    snapshots = KVSnapshots(model, "on", 1 << 20)
    other = folder.with_name("other")
    other.mkdir()
    assert snapshots.save_or_remove(other) is None
    assert snapshots.restore(folder) is None
    assert snapshots.save_or_remove(folder) is None
    assert (snapshot_tokens(other), snapshot_tokens(folder)) == (12, -1)


def test_a_long_prefill_is_saved_after_the_turn(folder: Path) -> None:
    model = Model(0)
    snapshots = KVSnapshots(model, "auto", 1 << 20)
    snapshots.restore(folder)
    for tokens, seconds, expected in (
        (100, 9.0, -1),
        (120, 11.0, 120),
        (200, 20.0, 120),  # 8 seconds of prefill are unsaved.
        (220, 22.5, 220),
    ):
        model.cached_ids, model.reevaluation_seconds = np.arange(tokens), seconds
        assert snapshots.save_after_turn(folder) is None
        assert snapshot_tokens(folder) == expected
    model.cached_ids = np.arange(220)[::-1].copy()  # Another branch of the conversation.
    snapshots.save_after_turn(folder)
    assert model.saved == 3
    assert snapshots.save_or_remove(folder) is None
    assert model.saved == 3


def test_off_neither_restores_nor_saves(folder: Path) -> None:
    KVSnapshots(Model(12), "on", 1 << 20).save_or_remove(folder)
    model = Model(3)
    snapshots = KVSnapshots(model, "off", 1 << 20)
    assert snapshots.restore(folder) is None
    assert len(model.cached_ids) == 3
    assert snapshots.save_or_remove(folder) is None
    assert snapshot_tokens(folder) == -1


def test_an_unusable_snapshot_leads_to_a_notice(folder: Path) -> None:
    model = Model()
    snapshots = KVSnapshots(model, "auto", 1 << 20)
    assert snapshots.restore(folder) is None  # The session has no snapshot.
    (folder / "kv.snapshot").write_bytes(b"12345678")
    model.trouble = SnapshotError("FILE is damaged")
    assert snapshots.restore(folder) == "FILE is damaged: the conversation will be evaluated again"


@pytest.mark.parametrize(
    ("error", "notice"),
    [
        (
            SnapshotError("the snapshot FILE cannot be written: No space left"),
            "the snapshot FILE cannot be written: No",
        ),
        (OSError(5, "Input/output error"), "the snapshot {folder}/kv.snapshot cannot be kept: Input/output error"),
    ],
)
def test_a_snapshot_that_cannot_be_written_leads_to_a_notice(folder: Path, error: Exception, notice: str) -> None:
    model = Model()
    model.trouble = error
    notice = KVSnapshots(model, "auto", 1 << 20).save_or_remove(folder)
    assert notice is not None
    assert notice.startswith(notice.format(folder=folder))


def test_the_oldest_snapshots_are_removed_first(folder: Path) -> None:
    for age, name in enumerate(("new", "older", "oldest")):
        other = folder.parent / name
        other.mkdir()
        (other / "kv.snapshot").write_bytes(bytes(400))
        (other / "session.jsonl").write_bytes(bytes(5000))
        os.utime(other / "kv.snapshot", (1e9 - age, 1e9 - age))
    assert KVSnapshots(Model(40), "auto", 1200).save_or_remove(folder) is None
    assert {path.parent.name for path in folder.parent.glob("*/kv.snapshot")} == {"one", "new", "older"}
    KVSnapshots(Model(100), "auto", 1200).save_or_remove(folder)
    assert {path.parent.name for path in folder.parent.glob("*/kv.snapshot")} == {"one", "new"}
    assert len(list(folder.parent.glob("*/session.jsonl"))) == 3


def test_links_and_special_files_are_not_removed(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kv.snapshot").write_bytes(bytes(1000))
    (folder.parent / "linked").symlink_to(elsewhere)
    (folder.parent / "odd" / "kv.snapshot").mkdir(parents=True)
    assert KVSnapshots(Model(100), "on", 1000).save_or_remove(folder) is None
    assert snapshot_tokens(folder) == 100
    assert (elsewhere / "kv.snapshot").stat().st_size == 1000
    assert (folder.parent / "odd" / "kv.snapshot").is_dir()


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = "a snapshot of 2 MiB exceeds snapshot-limit: the conversation will be evaluated again"
    for mode, notice in (("on", large), ("auto", None)):
        assert KVSnapshots(Model(1 << 18), mode, 1 << 20).save_or_remove(folder) == notice
        assert snapshot_tokens(folder) == -1
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(kv_snapshots.shutil, "disk_usage", lambda _: usage(9, 9, 3 << 20))
    full = "there is not enough disk space for a snapshot of 2 MiB"
    for mode, notice in (("on", full), ("auto", None)):
        assert KVSnapshots(Model(1 << 18), mode, 1 << 30).save_or_remove(folder) == notice
        assert snapshot_tokens(folder) == -1
