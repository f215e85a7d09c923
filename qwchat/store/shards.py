"""The weight files of a repository while they pass through this disk: fetched ahead, verified, removed by pieces.

A shard grows in `NAME`, gets an empty `NAME.verified` beside it once its SHA-256 is right, and only then may be read.
What has been converted is taken out of the file (`discard`), and the next shard may fill that space: besides one whole
shard, a twentieth of the largest is kept at most. After a kill, the length of `NAME` says where to continue.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import io
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from quant.safe_files import MAX_HEADER_BYTES, atomic_write
from qwchat.errors import HubError, QwchatError
from qwchat.store.hub import Repository
from qwchat.store.hub_download import BUFFER_BYTES, download
from qwchat.store.hub_files import HubFile

PREFIX_BYTES = 1 << 20
_AHEAD = 0.05  # of the largest shard: what may be there of the next one while this one is whole
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_BLOCK = 4096
_JOIN_SECONDS = 1.0


class FetchStoppedError(QwchatError):
    """A download that was abandoned because the conversion was."""


class Shards:
    """The shards of a repository in one folder, and the thread that fetches them.

    Args:
        repository: where they come from.
        folder: where they are kept; it exists.
        files: the shards in order.
        keep: keep shards that have been converted, whatever space that takes.
    """

    def __init__(self, repository: Repository, folder: Path, files: Sequence[HubFile], *, keep: bool = False) -> None:
        self._repository, self._folder, self._files = repository, folder, {file.name: file for file in files}
        largest = max(file.size for file in files)
        self._keep = keep
        self._budget = sum(file.size for file in files) if keep else largest + int(_AHEAD * largest)
        self._budget += len(files) * (PREFIX_BYTES + _BLOCK)
        self._changed = threading.Condition()
        self._taken = {file.name: self._blocks(file.name) for file in files}  # bytes on the disk
        self._ready = {file.name for file in files if self.marker(file.name).exists()}
        self._stopped = False
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.fetched = sum(self._length(name) for name in self._files)
        """Bytes that were downloaded, in this attempt and before."""

    def path(self, name: str) -> Path:
        """Return where shard `name` is kept."""
        return self._folder / self._files[name].local_name

    def marker(self, name: str) -> Path:
        """Return the file whose presence says that shard `name` is whole and has the right checksum."""
        return self._folder / f"{self._files[name].local_name}.verified"

    def fetch_header(self, name: str) -> Path:
        """Fetch the header of a shard, which describes its tensors, unless it is there. Raises HubError.

        Returns:
            A file of the header alone, which stays when the shard goes.
        """
        header = self._folder / f"{name}.header"
        if header.exists():
            return header
        size = self._files[name].size
        self._append(name, min(PREFIX_BYTES, size))
        with self.path(name).open("rb") as stream:
            length = 8 + int.from_bytes(stream.read(8), "little")
            if length <= MAX_HEADER_BYTES:  # A longer one is refused when it is parsed.
                self._append(name, min(length, size))
            stream.seek(0)
            with atomic_write(header, durable=False) as file:
                file.write(stream.read(min(length, MAX_HEADER_BYTES)))
        return header

    def start(self, names: Sequence[str]) -> None:
        """Fetch shards in this order, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, args=(list(names),), name="download", daemon=True)
        self._thread.start()

    def wait(self, name: str, timeout: float | None = None) -> bool:
        """Wait until a shard may be read, at most `timeout` seconds. Return whether it may be.

        Raises what stopped its download.
        """
        with self._changed:
            self._changed.wait_for(lambda: name in self._ready or self._stopped or self._failure is not None, timeout)
            if name in self._ready:
                return True
            if self._failure is not None:
                raise self._failure
            self._raise_if_stopped()
            return False

    def stop(self) -> None:
        """Stop the thread. What it has fetched stays for a later attempt.

        A thread that waits for a silent hub ends later, and changes nothing more.
        """
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def discard(self, name: str, start: int, stop: int) -> None:
        """Give bytes start..stop of a shard back to the disk; whole blocks only."""
        if self._keep:
            return
        first, last = -(-start // _BLOCK) * _BLOCK, stop // _BLOCK * _BLOCK
        if last > first and _punch(self.path(name), first, last - first):
            with self._changed:
                self._taken[name] = max(0, self._taken[name] - (last - first))
                self._changed.notify_all()

    def drop(self, name: str) -> None:
        """Remove a shard, all of which has been converted."""
        if self._keep:
            return
        path = self.path(name)
        _punch(path, 0, self._files[name].size)  # The blocks go, even where the file is still mapped.
        path.unlink(missing_ok=True)
        self.marker(name).unlink(missing_ok=True)
        with self._changed:
            self._taken[name] = 0
            self._changed.notify_all()

    def _run(self, names: list[str]) -> None:
        try:
            for name in names:
                if name not in self._ready:
                    self._fetch(name)
                with self._changed:
                    self._ready.add(name)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it in the thread that reads
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _fetch(self, name: str) -> None:
        """Download a shard to its end and compare its checksum. Raises HubError."""
        digest = hashlib.sha256()
        start = self._length(name)
        if start:
            with self.path(name).open("rb") as stream:
                while data := stream.read(BUFFER_BYTES):  # What an earlier attempt has left.
                    digest.update(data)
        found = self._append(name, self._files[name].size, digest).hexdigest()
        with self._changed:
            self._raise_if_stopped()
        if self._files[name].sha256 not in (None, found):
            self.path(name).unlink()
            raise HubError(
                f"{self._repository.name}: {name} arrived with a wrong checksum and was removed; pull again to fetch it"
            )
        self.marker(name).touch()

    def _append(self, name: str, stop: int, digest: Digest | None = None) -> Digest:
        """Download a shard from where its file ends up to byte `stop`. Return `digest` of all its bytes."""
        file, start = self._files[name], self._length(name)
        path = self.path(name)
        try:
            with path.open("r+b" if start else "wb", buffering=0) as stream:
                stream.seek(start)
                sink = _ShardSink(self, name, stream, digest or hashlib.sha256())
                if start < stop:
                    download(self._repository, file, sink, start, stop)
        except OSError as error:
            remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its permissions"
            raise HubError(f"{path} cannot be written ({error.strerror}): {remedy} and pull again") from error
        return sink.digest

    def _length(self, name: str) -> int:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return 0

    def _blocks(self, name: str) -> int:
        try:
            return self.path(name).stat().st_blocks * 512
        except FileNotFoundError:
            return 0

    def take(self, name: str, count: int) -> None:
        """Wait for space for `count` more bytes of a shard. Raises FetchStoppedError."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._stopped or sum(self._taken.values()) + count <= self._budget or not self._others(name)
            )
            self._raise_if_stopped()
            self._taken[name] += count
            self.fetched += count

    def give_back(self, name: str, count: int) -> None:
        """Subtract bytes that the hub sends again from the start. Raises FetchStoppedError."""
        with self._changed:
            self._raise_if_stopped()
            self._taken[name] -= count
            self.fetched -= count

    def _raise_if_stopped(self) -> None:
        if self._stopped:
            raise FetchStoppedError("the download was stopped; pull again to resume")

    def _others(self, name: str) -> bool:
        """Return whether another shard waits to be converted; without one, nothing would ever make space."""
        return any(taken > PREFIX_BYTES + _BLOCK for other, taken in self._taken.items() if other != name)


class Digest(Protocol):
    """A checksum of bytes that arrive in pieces."""

    def update(self, data: memoryview | bytes) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """Return the checksum."""


class _ShardSink:
    """The file of a shard as `download` writes it, within the budget of the disk, with the checksum of its bytes."""

    def __init__(self, shards: Shards, name: str, stream: io.RawIOBase, digest: Digest) -> None:
        self._shards, self._name, self._stream, self.digest = shards, name, stream, digest

    def write(self, data: memoryview) -> None:
        """Write bytes once there is space for them. Raises FetchStoppedError and OSError."""
        self._shards.take(self._name, len(data))
        written = 0
        while written < len(data):
            written += self._stream.write(data[written:]) or 0
        self.digest.update(data)

    def restart(self) -> None:
        """Remove what was written: the hub sends the file from its start."""
        self._shards.give_back(self._name, self._stream.tell())
        self._stream.seek(0)
        self._stream.truncate()
        self.digest = hashlib.sha256()


def _punch(path: Path, start: int, count: int) -> bool:
    """Take a range out of a file, whose size stays; return False where the system cannot."""
    if sys.platform != "linux":
        return False
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        mode = _FALLOC_KEEP_SIZE | _FALLOC_PUNCH_HOLE
        offset, length = ctypes.c_int64(start), ctypes.c_int64(count)
        return bool(libc.fallocate64(descriptor, mode, offset, length) == 0)
    except AttributeError:  # A C library without it.
        return False
    finally:
        os.close(descriptor)
