"""Compiled code, kept as object files and loaded without Numba.

All objects of one installation, machine and SIMD level stand in one file of the platform's cache folder.  Its name
hashes every source file that goes into the code, where the package is installed, the versions of Numba and llvmlite,
the processor and the level; its first line is JSON and says what follows:

    {"key": HEX, "objects": [{"symbol": NAME, "bytes": COUNT, "sha256": HEX}, …]}

What is loaded is run, so the file must be the user's own, in a folder where nobody else can write, under the right
key, and every object must have its checksum; anything else counts as absent and is compiled again.
"""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from quant.native.level import current_level, host_cpu, host_features

_FILE_NAME = "objects"
_FOLDER_PREFIX = "kernels-"
_DAY = 86_400  # seconds
_UNUSED_DAYS = 30
_HEADER_LIMIT = 1 << 20
_LIMIT = 64 << 20  # bytes; all kernels together are some hundred KB
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH

Progress = Callable[[int, int, str], None]  # objects done, objects in all, what is compiled now


def _version_file(package: str) -> bytes:
    """The file that tells the version of ``package``, which is not imported for it."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        return b""
    return (Path(found.origin).parent / "_version.py").read_bytes()


def source_files() -> list[Path]:
    """Every source file that goes into compiled code."""
    package = Path(__file__).resolve().parent.parent
    formats = importlib.util.find_spec("quant.formats")
    assert formats is not None
    assert formats.origin is not None
    folders = (package / "kernels", package / "model", Path(formats.origin).parent)
    return [source for folder in folders for source in sorted(folder.glob("*.py"))]


@cache
def source_digest() -> bytes:
    """The hash of every source file that goes into compiled code."""
    digest = hashlib.sha256()
    for source in source_files():
        digest.update(source.read_bytes())
    return digest.digest()


@cache
def cache_key() -> str:
    """The hash (hex) of everything that compiled code depends on."""
    # Numba files code under the path of its source, so two installations cannot share it.
    digest = hashlib.sha256(str(Path(__file__).resolve()).encode() + source_digest())
    for package in ("numba", "llvmlite"):
        digest.update(_version_file(package))
    digest.update(f"|{host_cpu()}|{current_level()}|{sorted(host_features().items())}".encode())
    return digest.hexdigest()


@cache
def cache_folder() -> Path:
    """Where this version's code is kept for this machine and level; it may not exist yet."""
    root = os.environ.get("QWCHAT_CACHE")
    if not root:
        import platformdirs

        root = platformdirs.user_cache_dir("qwchat", appauthor=False)
    return Path(root) / f"{_FOLDER_PREFIX}{cache_key()[:16]}"


def is_private(status: os.stat_result) -> bool:
    """Whether something is the user's own and nobody else can write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


@cache
def writable_folder() -> Path:
    """The cache folder, or one for this process alone where that is not the user's own or cannot be written."""
    folder = cache_folder()
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        if is_private(folder.lstat()) and os.access(folder, os.W_OK | os.X_OK):
            return folder
    except OSError:
        pass
    private = tempfile.mkdtemp(prefix="qwchat-kernels-")
    atexit.register(shutil.rmtree, private, ignore_errors=True)
    return Path(private)


def _read(path: Path) -> bytes | None:
    """The bytes of a file that nobody but the user could have written."""
    try:
        if not is_private(path.parent.lstat()):
            return None
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not is_private(status) or status.st_size > _LIMIT:
            return None
        return file.read()


def _parse(data: bytes) -> dict[str, bytes] | None:
    """Symbol to object code, in the order in which they were compiled; None unless everything is as it was written."""
    line = data[:_HEADER_LIMIT].partition(b"\n")[0]
    try:
        header = json.loads(line)
        listed = [(str(entry["symbol"]), int(entry["bytes"]), str(entry["sha256"])) for entry in header["objects"]]
        if header["key"] != cache_key():
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


def load() -> dict[str, bytes]:
    """What is kept, symbol to object code; empty where there is nothing, or nothing to be trusted."""
    data = _read(cache_folder() / _FILE_NAME)
    if data is None:
        return {}
    _note_use(cache_folder())
    return _parse(data) or {}


def _note_use(folder: Path) -> None:
    """Dates the folder, at most once a day: what is used is not pruned."""
    try:
        if time.time() - folder.stat().st_mtime > _DAY:
            os.utime(folder)
    except OSError:  # It can be read and not written, which is enough.
        return


def prune() -> None:
    """Removes the folders of other versions, processors and levels that nobody has used for thirty days."""
    kept = cache_folder()
    try:
        for folder in kept.parent.glob(f"{_FOLDER_PREFIX}*"):
            status = folder.lstat()
            old = time.time() - status.st_mtime > _UNUSED_DAYS * _DAY
            if folder != kept and stat.S_ISDIR(status.st_mode) and is_private(status) and old:
                shutil.rmtree(folder, ignore_errors=True)
    except OSError:  # Another process was quicker, or it is not ours to tidy.
        return


def is_damaged() -> bool:
    """Whether there is a file that must not be used."""
    path = cache_folder() / _FILE_NAME
    if not path.exists():
        return False
    data = _read(path)
    return data is None or _parse(data) is None


def save(objects: Mapping[str, bytes]) -> None:
    """Keeps ``objects`` beside what is kept already.  Processes that do this at once leave one file, and a whole one.

    Where the disk is full nothing is kept and nothing is lost.  What has not been used for long makes room.
    """
    prune()
    together = {**load(), **objects}
    listed = [
        {"symbol": symbol, "bytes": len(code), "sha256": hashlib.sha256(code).hexdigest()}
        for symbol, code in together.items()
    ]
    header = json.dumps({"key": cache_key(), "objects": listed}).encode() + b"\n"
    folder = writable_folder()
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=f"{_FILE_NAME}-")  # mode 0600
        with os.fdopen(descriptor, "wb") as file:
            file.write(header + b"".join(together.values()))
        Path(temporary).replace(folder / _FILE_NAME)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


class Linker:
    """Loads objects into this process.  What it has loaded stays: threads may run it until the process ends."""

    def __init__(self) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._jit = _immortal(llvm.create_lljit_compiler(suppress_errors=True))
        self._count = 0
        self.addresses: dict[str, int] = {}
        """Where the symbols are that have been loaded."""

    def add(self, symbol: str, code: bytes) -> int:
        """Loads an object and returns the address of ``symbol`` in it.

        It may use the symbols loaded before, and those of the process: the C library.  Raises RuntimeError if it
        needs others, or is no object for this machine.
        """
        from llvmlite.binding import JITLibraryBuilder

        builder = JITLibraryBuilder().add_object_img(code).export_symbol(symbol)
        for known, address in self.addresses.items():
            builder.import_symbol(known, address)
        self._count += 1  # A name cannot be used twice, not even after a failure.
        library = _immortal(builder.link(self._jit, f"{symbol}.{self._count}"))
        self.addresses[symbol] = library[symbol]
        return self.addresses[symbol]


def _immortal(thing: Any) -> Any:
    """``thing``, never to be freed: at the interpreter's end threads may still be running its code."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


@cache
def linker() -> Linker:
    """The linker of this process."""
    return Linker()


def callable_at(address: int, arguments: int) -> Callable[..., Any]:
    """The compiled function at ``address`` for Python: ``arguments`` 64-bit integers to one; frees the GIL."""
    prototype = ctypes.CFUNCTYPE(ctypes.c_int64, *[ctypes.c_int64] * arguments)
    return prototype(address)


def link(objects: Mapping[str, bytes], wanted: Iterable[str]) -> dict[str, int] | None:
    """Loads all ``objects``, each after those it needs; the addresses of ``wanted``, or None where one is missing."""
    wanted = set(wanted)
    if not wanted <= set(objects):
        return None
    here = linker()
    try:
        for symbol, code in objects.items():
            if symbol not in here.addresses:
                here.add(symbol, code)
    except RuntimeError:  # made by another version of what it needs: compile again
        return None
    return {symbol: here.addresses[symbol] for symbol in wanted}
