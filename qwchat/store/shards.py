"""The weight files of a repository while they pass through this disk: fetched ahead, verified, removed by pieces.

A shard grows in `NAME`, gets an empty `NAME.verified` beside it once its SHA-256 is right, and only then may be read.
What has been converted is taken out of the file (`discard`), and the next shard may fill that space: besides one whole
shard, a twentieth of the largest is kept at most. After a kill, the length of `NAME` says where to continue.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from quant.safe_files import atomic_write
from quant.sources.safetensors import MAX_HEADER_BYTES
from qwchat.errors import HubError, QwchatError
from qwchat.store.hub import HubFile, Repository, download

PREFIX_BYTES = 1 << 20
_AHEAD = 0.05  # of the largest shard: what may be there of the next one while this one is whole
_FALLOC_KEEP_SIZE, _FALLOC_PUNCH_HOLE = 1, 2
_BLOCK = 4096


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
        return self._folder / name

    def marker(self, name: str) -> Path:
        """Return the file whose presence says that shard `name` is whole and has the right checksum."""
        return self._folder / f"{name}.verified"

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

    def wait(self, name: str) -> None:
        """Wait until a shard may be read. Raises what stopped its download."""
        with self._changed:
            self._changed.wait_for(lambda: name in self._ready or self._stopped or self._failure is not None)
            if name in self._ready:
                return
            raise self._failure or FetchStoppedError("the download was stopped; pull again to resume")

    def stop(self) -> None:
        """Stop the thread. What it has fetched stays for a later attempt."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

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
                    self._append(name, self._files[name].size)
                    self._verify(name)
                with self._changed:
                    self._ready.add(name)
                    self._changed.notify_all()
        except BaseException as error:  # noqa: BLE001 - `wait` raises it in the thread that reads
            with self._changed:
                self._failure = error
                self._changed.notify_all()

    def _append(self, name: str, stop: int) -> None:
        """Download a shard from where its file ends up to byte `stop`."""
        file, start = self._files[name], self._length(name)
        if start >= stop:
            return
        with self.path(name).open("r+b" if start else "wb") as stream:
            stream.seek(start)
            try:
                download(self._repository, file, _Metered(self, name, stream, stop), start, None if start else stop)
            except _EnoughError:
                pass
            except OSError as error:
                remedy = "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check its permissions"
                where = self.path(name)
                raise HubError(f"{where} cannot be written ({error.strerror}): {remedy} and pull again") from error
        if self._length(name) < stop:
            raise HubError(f"{self._repository.name}: {name} ended early; pull again to resume")

    def _verify(self, name: str) -> None:
        file, path = self._files[name], self.path(name)
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if file.sha256 is not None and found != file.sha256:
            path.unlink()
            raise HubError(
                f"{self._repository.name}: {name} arrived with a wrong checksum and was removed; pull again to fetch it"
            )
        self.marker(name).touch()

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
            if self._stopped:
                raise FetchStoppedError("the download was stopped; pull again to resume")
            self._taken[name] += count
            self.fetched += count

    def give_back(self, name: str, count: int) -> None:
        """Subtract bytes that the hub sends again from the start."""
        with self._changed:
            self._taken[name] -= count
            self.fetched -= count

    def _others(self, name: str) -> bool:
        """Return whether another shard waits to be converted; without one, nothing would ever make space."""
        return any(taken > PREFIX_BYTES + _BLOCK for other, taken in self._taken.items() if other != name)


class _EnoughError(Exception):
    """As many bytes as were wanted have arrived."""


class _Metered:
    """The file of a shard as `download` writes it: at most up to `stop`, and within the budget of the disk."""

    def __init__(self, shards: Shards, name: str, stream: BinaryIO, stop: int) -> None:
        self._shards, self._name, self._stream, self._stop = shards, name, stream, stop

    def write(self, data: bytes) -> int:
        """Write `data`; more than was wanted is left out, and ends the download."""
        wanted = data[: self._stop - self._stream.tell()]
        self._shards.take(self._name, len(wanted))
        self._stream.write(wanted)
        if len(wanted) < len(data):
            self._stream.flush()
            raise _EnoughError
        return len(data)

    def seek(self, position: int) -> int:
        """Go back to `position`, from which the hub sends the file again."""
        self._shards.give_back(self._name, self._stream.tell() - position)
        return self._stream.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._stream.tell()

    def truncate(self) -> int:
        """Cut off what follows the position."""
        return self._stream.truncate()


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
