"""Compiled code, kept as object files that are loaded without Numba.

All objects of one installation, machine and SIMD level are in one file of the user's cache folder. The folder's name
hashes every source file that goes into the code, where the package is installed, the versions of Numba and llvmlite,
the processor and the level; the file's first line is JSON and lists what follows:

    {"key": HEX, "objects": [{"symbol": NAME, "bytes": COUNT, "sha256": HEX}, …]}

What is loaded is run, so the file must belong to the user, in a folder that only the user can write, under the right
key, and every object must have its checksum; anything else counts as absent and is compiled again.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from quant.errors import ArgumentError
from quant.native import simd_level
from quant.safe_files import atomic_write, is_private, make_private_folder, read_private

CompileProgress = Callable[[str, float], None]  # what is compiled now, and its share of the work (see `costs`)

_LOCK_NAME = "lock"
_DAY = 86_400  # seconds
_UNUSED_DAYS = 30
_MAX_HEADER_BYTES = 1 << 20
_MAX_FILE_BYTES = 64 << 20  # bytes; all kernels together are some hundred KB


def cache_root() -> Path:
    """Return the folder of everything that is kept to save time; it need not exist.

    Raises:
        ArgumentError: `QWCHAT_CACHE` is relative. Code is run from there, and the working folder may be of others.
    """
    root = os.environ.get("QWCHAT_CACHE")
    if root:
        if not Path(root).is_absolute():
            raise ArgumentError(f"QWCHAT_CACHE={root!r} is a relative path: set it to an absolute one")
        return Path(root)
    import platformdirs

    root = platformdirs.user_cache_dir("qwchat", appauthor=False)
    # XDG_CACHE_HOME may be relative as well, which its specification tells programs to ignore.
    return Path(root) if Path(root).is_absolute() else Path.home() / ".cache" / "qwchat"


def source_files(*packages: str) -> list[Path]:
    """Return the source files of `packages`, which are not imported."""
    files = []
    for package in packages:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        files += sorted(Path(found.origin).parent.glob("*.py"))
    return files


def _version_file(package: str) -> bytes:
    """Return the file that states the version of `package`, which is not imported."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return b""
    return (Path(found.origin).parent / "_version.py").read_bytes()


class ObjectStore:
    """The objects that some packages' sources are compiled to.

    Args:
        prefix: how the names of the store's folders begin.
        packages: whose source files go into the code, by dotted name.
        file_name: the file in the folder; stores of the same sources may share a folder.
        extra_key: what decides about the code apart from the sources.
    """

    def __init__(self, prefix: str, packages: Sequence[str], file_name: str = "objects", extra_key: str = "") -> None:
        self._prefix, self._packages, self._file_name, self._extra_key = prefix, packages, file_name, extra_key

    @cached_property
    def source_digest(self) -> bytes:
        """The hash of every source file that goes into the code, and of the store's facts."""
        digest = hashlib.sha256(self._extra_key.encode())
        for source in source_files(*self._packages):
            digest.update(source.read_bytes())
        return digest.digest()

    @cached_property
    def key(self) -> str:
        """The hash (hex) of everything that the code depends on."""
        digest = hashlib.sha256(str(Path(__file__).resolve()).encode() + self.source_digest)
        for package in ("numba", "llvmlite"):
            digest.update(_version_file(package))
        features = sorted(simd_level.host_features().items())
        digest.update(f"|{simd_level.host_cpu()}|{simd_level.current_level()}|{features}".encode())
        return digest.hexdigest()

    @cached_property
    def folder(self) -> Path:
        """Where the code is kept; it may not exist yet. Raises ArgumentError as `cache_root`."""
        return cache_root() / f"{self._prefix}{self.key[:16]}"

    @cached_property
    def writable_folder(self) -> Path:
        """The folder, or one for this process where that is not private or cannot be written."""
        folder = self.folder
        try:
            if make_private_folder(folder) and os.access(folder, os.W_OK | os.X_OK):
                return folder
        except OSError:
            pass
        private = tempfile.mkdtemp(prefix=f"qwchat-{self._prefix}")
        atexit.register(shutil.rmtree, private, ignore_errors=True)
        return Path(private)

    def load(self) -> dict[str, bytes]:
        """Return what is kept, symbol to object code; empty where nothing is, or nothing to be trusted."""
        data = read_private(self.folder / self._file_name, _MAX_FILE_BYTES)
        if data is None:
            return {}
        _mark_used(self.folder)
        return self._parse(data) or {}

    def is_damaged(self) -> bool:
        """Return whether there is a file that must not be used."""
        path = self.folder / self._file_name
        if not path.exists():
            return False
        data = read_private(path, _MAX_FILE_BYTES)
        return data is None or self._parse(data) is None

    def save(self, objects: Mapping[str, bytes]) -> None:
        """Keep `objects` beside what is kept already. The file is replaced as a whole.

        Where the disk is full nothing is kept and nothing is lost. Folders that were long unused are removed.
        """
        self.prune()
        together = {**self.load(), **objects}
        listed = [
            {"symbol": symbol, "bytes": len(code), "sha256": hashlib.sha256(code).hexdigest()}
            for symbol, code in together.items()
        ]
        header = json.dumps({"key": self.key, "objects": listed}).encode() + b"\n"
        with contextlib.suppress(OSError), atomic_write(self.writable_folder / self._file_name, durable=False) as file:
            file.write(header + b"".join(together.values()))

    def prune(self) -> None:
        """Remove the store's folders of other versions, processors and levels that were unused for thirty days."""
        try:
            for folder in self.folder.parent.glob(f"{self._prefix}*"):
                status = folder.lstat()
                old = time.time() - status.st_mtime > _UNUSED_DAYS * _DAY
                if folder != self.folder and stat.S_ISDIR(status.st_mode) and is_private(status) and old:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # Another process was quicker, or the folder is not ours to tidy.
            return

    @contextlib.contextmanager
    def exclusive(self, on_wait: Callable[[], object] | None = None) -> Iterator[None]:
        """Be the only process that compiles for this store; the others wait.

        The lock ends with the process that holds it, however that ends. Without a folder that can be written, or
        where the file system has no locks, every process compiles for itself.

        Args:
            on_wait: called once before waiting for another process.
        """
        lock = self.lock()
        if not lock.acquire(wait=False):
            if on_wait is not None:
                on_wait()
            lock.acquire(wait=True)
        try:
            yield
        finally:
            lock.release()

    def lock(self) -> FileLock:
        """Return the store's lock, not yet held."""
        shared = self.writable_folder == self.folder
        return FileLock(self.folder / f"{self._file_name}.{_LOCK_NAME}" if shared else None)

    def _parse(self, data: bytes) -> dict[str, bytes] | None:
        """Return symbol to object code, in the order of compilation; None unless all is as it was written."""
        line = data[:_MAX_HEADER_BYTES].partition(b"\n")[0]
        try:
            header = json.loads(line)
            listed = [(str(entry["symbol"]), int(entry["bytes"]), str(entry["sha256"])) for entry in header["objects"]]
            if header["key"] != self.key:
                return None
        except (ValueError, TypeError, KeyError):
            return None
        objects, position = {}, len(line) + 1
        for symbol, count, checksum in listed:
            code = data[position : position + count]
            if count < 0 or len(code) != count or hashlib.sha256(code).hexdigest() != checksum:
                return None
            objects[symbol] = code
            position += count
        return objects if position == len(data) else None


class FileLock:
    """A lock on a file, free again when its process ends. Without a path there is nothing to hold."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Take the lock. Return False if another process holds it and `wait` is False.

        True also where the lock cannot be had at all: then there is nothing to wait for.
        """
        import fcntl

        if self._path is None:
            return True
        try:
            if self._descriptor is None:
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                self._descriptor = os.open(self._path, flags, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        except OSError:  # A disk without room for the file, a file system without locks.
            return True
        return True

    def release(self) -> None:
        """Let the next process in."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _mark_used(folder: Path) -> None:
    """Date the folder, at most once a day: what is used is not pruned."""
    try:
        if time.time() - folder.stat().st_mtime > _DAY:
            os.utime(folder)
    except OSError:  # It can be read and not written, which is enough.
        return
