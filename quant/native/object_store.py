"""Cache of compiled code as object files that are loaded without Numba.

One file in the user's cache folder holds all objects of one installation, processor and SIMD level. The name of its
folder is a hash of all source files that the code depends on, the path of the package, the versions of Numba and
llvmlite, the processor and the level. The first line of the file is JSON; the objects follow in its order:

    {"key": HEX, "objects": [{"symbol": NAME, "bytes": COUNT, "sha256": HEX}, …]}

Loaded code is executed. The file must therefore belong to the user, be in a folder that only the user can write to,
have the right key, and every object must match its checksum. Otherwise it is ignored and the code is compiled again.
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

CompileProgress = Callable[[str, float], None]  # name of the function being compiled, and its cost

_LOCK_NAME = "lock"
_DAY = 86_400  # seconds
_UNUSED_DAYS = 30
_MAX_HEADER_BYTES = 1 << 20
_MAX_FILE_BYTES = 64 << 20  # all kernels together have a few hundred kB


def cache_root() -> Path:
    """Return the cache folder, which may not exist yet.

    Raises:
        ArgumentError: `QWCHAT_CACHE` is a relative path. Code is executed from this folder, and the working folder may
            belong to another user.
    """
    root = os.environ.get("QWCHAT_CACHE")
    if root:
        if not Path(root).is_absolute():
            raise ArgumentError(f"QWCHAT_CACHE={root!r} is a relative path; set it to an absolute path")
        return Path(root)
    import platformdirs

    root = platformdirs.user_cache_dir("qwchat", appauthor=False)
    # XDG_CACHE_HOME may be relative as well. Its specification says to ignore such values.
    return Path(root) if Path(root).is_absolute() else Path.home() / ".cache" / "qwchat"


def source_files(*packages: str) -> list[Path]:
    """Return the source files of packages, without importing them."""
    files = []
    for package in packages:
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        files += sorted(Path(found.origin).parent.glob("*.py"))
    return files


def _version_file(package: str) -> bytes:
    """Return the content of the file that holds the version of `package`, without importing it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return b""
    return (Path(found.origin).parent / "_version.py").read_bytes()


class ObjectStore:
    """Store of the objects that the functions of some packages are compiled to.

    Args:
        prefix: prefix of the names of the store's folders.
        packages: dotted names of the packages whose sources the code depends on.
        file_name: name of the file in the folder. Stores with the same sources may share a folder.
        extra_key: text for everything else that the code depends on.
    """

    def __init__(self, prefix: str, packages: Sequence[str], file_name: str = "objects", extra_key: str = "") -> None:
        self._prefix, self._packages, self._file_name, self._extra_key = prefix, packages, file_name, extra_key

    @cached_property
    def source_digest(self) -> bytes:
        """SHA-256 of all source files and of `extra_key`."""
        digest = hashlib.sha256(self._extra_key.encode())
        for source in source_files(*self._packages):
            digest.update(source.read_bytes())
        return digest.digest()

    @cached_property
    def key(self) -> str:
        """SHA-256 (hex) of everything that the code depends on."""
        digest = hashlib.sha256(str(Path(__file__).resolve()).encode() + self.source_digest)
        for package in ("numba", "llvmlite"):
            digest.update(_version_file(package))
        features = sorted(simd_level.host_features().items())
        digest.update(f"|{simd_level.host_cpu()}|{simd_level.current_level()}|{features}".encode())
        return digest.hexdigest()

    @cached_property
    def folder(self) -> Path:
        """Folder of the store, which may not exist yet. Raises ArgumentError like `cache_root`."""
        return cache_root() / f"{self._prefix}{self.key[:16]}"

    @cached_property
    def writable_folder(self) -> Path:
        """The folder, or a temporary one for this process if it is not private or not writable."""
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
        """Return the object code by symbol. Empty if the file is missing or not to be trusted."""
        data = read_private(self.folder / self._file_name, _MAX_FILE_BYTES)
        if data is None:
            return {}
        _mark_used(self.folder)
        return self._parse(data) or {}

    def is_damaged(self) -> bool:
        """Return whether the file exists and must not be used."""
        path = self.folder / self._file_name
        if not path.exists():
            return False
        data = read_private(path, _MAX_FILE_BYTES)
        return data is None or self._parse(data) is None

    def save(self, objects: Mapping[str, bytes]) -> None:
        """Add objects to the store. The file is replaced atomically.

        If the disk is full, the old file stays as it is. Folders that have not been used for long are deleted.

        Args:
            objects: object code by symbol.
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
        """Delete the store's other folders that have not been used for thirty days."""
        try:
            for folder in self.folder.parent.glob(f"{self._prefix}*"):
                status = folder.lstat()
                old = time.time() - status.st_mtime > _UNUSED_DAYS * _DAY
                if folder != self.folder and stat.S_ISDIR(status.st_mode) and is_private(status) and old:
                    shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another process deleted it first, or the cache folder belongs to another user
            return

    @contextlib.contextmanager
    def exclusive(self, on_wait: Callable[[], object] | None = None) -> Iterator[None]:
        """Hold the store's lock during the block, so that only one process compiles at a time.

        The system releases the lock when its process ends. If the folder is not writable, or the file system does not
        support locks, every process compiles on its own.

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
        """Return the store's lock, not yet acquired."""
        shared = self.writable_folder == self.folder
        return FileLock(self.folder / f"{self._file_name}.{_LOCK_NAME}" if shared else None)

    def _parse(self, data: bytes) -> dict[str, bytes] | None:
        """Return the objects of a file by symbol, in file order, or None if key, sizes or checksums do not match."""
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
    """Lock on a file, released at the latest when the process ends. Without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self, *, wait: bool) -> bool:
        """Acquire the lock. Return False if another process holds it and `wait` is False.

        Also return True if the system cannot provide the lock: then there is no process to wait for.
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
        except OSError:  # full disk, or a file system without locks
            return True
        return True

    def release(self) -> None:
        """Release the lock."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _mark_used(folder: Path) -> None:
    """Update the folder's time stamp, at most once a day, so that `prune` keeps it."""
    try:
        if time.time() - folder.stat().st_mtime > _DAY:
            os.utime(folder)
    except OSError:  # a read-only folder is fine
        return
