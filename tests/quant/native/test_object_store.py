"""Store of compiled code: what it trusts and who compiles."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from quant.errors import ArgumentError
from quant.formats import FORMATS
from quant.native.linker import link_objects
from quant.native.object_store import ObjectStore, cache_root

FORK = multiprocessing.get_context("fork")


def store_in(folder: Path) -> ObjectStore:
    """Return a store in `folder`, which is created."""
    folder.mkdir(mode=0o700, exist_ok=True)
    made = ObjectStore("kernels-", ("quant.formats",))
    made.folder = folder
    return made


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    """Return a private store with two objects."""
    made = store_in(tmp_path / "cache")
    made.save({"a": b"first", "b": b""})
    assert made.load() == {"a": b"first", "b": b""}
    return made


def file_of(store: ObjectStore) -> Path:
    return store.folder / "objects"


def test_saving_adds(store: ObjectStore) -> None:
    store.save({"b": b"new", "c": b"third"})
    assert store.load() == {"a": b"first", "b": b"new", "c": b"third"}
    assert not store.is_damaged()
    assert [path.name for path in store.folder.iterdir()] == ["objects"]


def test_folders_that_were_long_unused_are_removed(tmp_path: Path) -> None:
    ages = {"kernels-now": 90, "kernels-recent": 29, "kernels-old": 31, "kernels-theirs": 31, "models": 90}
    for name, days in ages.items():
        (tmp_path / name).mkdir(mode=0o700)
        (tmp_path / name / "objects").write_bytes(b"code")
        when = time.time() - days * 86_400
        os.utime(tmp_path / name, (when, when))
    (tmp_path / "kernels-theirs").chmod(0o777)
    (tmp_path / "kernels-link").symlink_to(tmp_path / "models")
    store_in(tmp_path / "kernels-now").save({"a": b"first"})
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"kernels-now", "kernels-recent", "kernels-theirs", "kernels-link", "models"}
    assert (tmp_path / "models" / "objects").exists()


def test_use_is_recorded_once_a_day(store: ObjectStore) -> None:
    for days, noted in ((20, True), (0.5, False)):
        when = time.time() - days * 86_400
        os.utime(store.folder, (when, when))
        used = store.folder.stat().st_mtime_ns
        assert store.load()
        assert (store.folder.stat().st_mtime_ns > used) is noted


@pytest.mark.parametrize("cut", [0, 1, 20, 100, -1, -5])
def test_a_truncated_file_is_not_used(store: ObjectStore, cut: int) -> None:
    file_of(store).write_bytes(file_of(store).read_bytes()[:cut])
    assert store.load() == {}
    assert store.is_damaged()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"first", b"fIrst"),
        (b'"bytes": 5', b'"bytes": 4'),
        (b'"bytes": 5', b'"bytes": -5'),
        (b'"objects": [', b'"objects": [3, '),
        (b"first", b"first and more"),
    ],
)
def test_an_altered_file_is_not_used(store: ObjectStore, old: bytes, new: bytes) -> None:
    file_of(store).write_bytes(file_of(store).read_bytes().replace(old, new))
    assert store.load() == {}
    assert store.is_damaged()


def test_stale_code_is_not_used(store: ObjectStore) -> None:
    store.key = "another processor"
    assert store.load() == {}


@pytest.mark.parametrize("which", ["file", "folder"])
def test_code_that_others_could_have_written_is_not_used(store: ObjectStore, which: str) -> None:
    (file_of(store) if which == "file" else store.folder).chmod(0o777)
    assert store.load() == {}
    assert store.is_damaged()


def test_another_user_s_file_is_not_used(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: file_of(store).stat().st_uid + 1)
    assert store.load() == {}


def test_a_link_is_not_followed(store: ObjectStore) -> None:
    elsewhere = store.folder / "elsewhere"
    file_of(store).rename(elsewhere)
    file_of(store).symlink_to(elsewhere)
    assert store.load() == {}


def test_concurrent_saves_leave_a_complete_file(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.save({f"s{number}": bytes([number]) * 50_000}), range(40)))
    assert store.load().keys() >= {"a", "b"}
    assert not store.is_damaged()


@pytest.mark.parametrize("trouble", ["blocked", "open", "closed"])
def test_a_folder_that_cannot_be_used_is_replaced_by_a_private_one(tmp_path: Path, trouble: str) -> None:
    if trouble == "closed" and os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    place = tmp_path / "place"
    if trouble == "blocked":
        place.write_text("no folder can be made below this")
        place = place / "cache"
    else:
        place.mkdir()
        place.chmod(0o777 if trouble == "open" else 0o500)
    store = ObjectStore("kernels-", ("quant.formats",))
    store.folder = place
    assert store.writable_folder.name.startswith("qwchat-kernels-")
    assert store.writable_folder.stat().st_mode & 0o777 == 0o700
    with store.exclusive(lambda: pytest.fail("there is no process to wait for")):
        assert store.lock().acquire(wait=False)  # Every process compiles on its own.


def test_a_full_disk_is_not_an_error(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **options: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "mkstemp", full)
    store.save({"c": b"third"})
    assert store.load() == {"a": b"first", "b": b""}
    monkeypatch.setattr(os, "open", full)
    with store.exclusive(lambda: pytest.fail("there is no process to wait for")):
        pass


def test_an_object_that_cannot_be_linked_counts_as_missing() -> None:
    assert link_objects({"qwchat_nonsense": b"this is not an object file"}, ["qwchat_nonsense"]) is None
    assert link_objects({}, ["qwchat_absent"]) is None


def test_a_relative_cache_folder_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in (".cache", "cache/qwchat", "../x"):
        monkeypatch.setenv("QWCHAT_CACHE", place)
        with pytest.raises(ArgumentError, match="relative path; set it to an absolute path"):
            cache_root()
    monkeypatch.delenv("QWCHAT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", ".cache")
    assert cache_root().is_absolute()


def hold(folder: Path, held: int) -> None:
    """Hold the lock of the store in `folder` until killed. Report on a pipe when it is held."""
    with store_in(folder).exclusive():
        os.write(held, b"!")
        time.sleep(600)


def test_the_lock_of_a_killed_process_goes_to_the_next(tmp_path: Path) -> None:
    store = store_in(tmp_path / "cache")
    told, tell = os.pipe()
    holder = FORK.Process(target=hold, args=(store.folder, tell))
    holder.start()
    assert os.read(told, 1) == b"!"
    assert holder.pid is not None
    waited = []

    def waiting() -> None:
        waited.append(True)
        assert not store.lock().acquire(wait=False)
        os.kill(holder.pid or 0, signal.SIGKILL)

    with store.exclusive(waiting):
        assert waited == [True]
        assert not store.lock().acquire(wait=False)
    holder.join()
    with store.exclusive(lambda: pytest.fail("no process holds the lock")):
        pass


def test_the_extra_key_selects_the_code() -> None:
    plain, other = (ObjectStore("kernels-", ("quant.formats",), extra_key=facts) for facts in ("", "a format more"))
    assert plain.source_digest != other.source_digest
    assert plain.folder != other.folder
    records = repr(list(FORMATS.values()))
    assert "q4" in records
    assert " at 0x" not in records, "another process would look for its code elsewhere"
