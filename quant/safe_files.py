"""Files: reading untrusted ones within a limit, private ones, and replacing one as a whole."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

MAX_JSON_BYTES = 64 << 20
MAX_JSON_VALUES = 4_000_000
"""Values that a JSON text may hold: parsed they take some 400 MB. The tokenizer of Qwen2 has 800,000."""
COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files that travel with the weights from a checkpoint into a model folder, where they exist."""

ErrorFactory = Callable[[str], Exception]
"""The class of the exception to raise, made of its message."""


def parse_json(data: bytes, where: str, error: ErrorFactory) -> Any:
    """Parse `data` as JSON in UTF-8. `where` names the source in messages; raises `error`."""
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > MAX_JSON_VALUES:
        raise error(f"{where} holds more than {MAX_JSON_VALUES:,} JSON values and is not parsed; get the file again")
    try:
        return json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise error(f"{where} is not UTF-8 text ({exc.reason} at byte {exc.start}); get the file again") from exc
    except json.JSONDecodeError as exc:
        raise error(f"{where} is not valid JSON: {exc.msg} at line {exc.lineno}; get the file again") from exc
    except RecursionError as exc:
        raise error(f"{where} cannot be parsed as JSON: it is nested too deeply; get the file again") from exc
    except ValueError as exc:
        raise error(
            f"{where} cannot be parsed as JSON: it holds a number of thousands of digits; get the file again"
        ) from exc


def parse_json_object(data: bytes, where: str, error: ErrorFactory) -> dict[str, Any]:
    """Parse `data` as one JSON object. `where` names the source in messages; raises `error`."""
    value = parse_json(data, where, error)
    if not isinstance(value, dict):
        raise error(f"{where} holds a JSON {type(value).__name__}, not an object; get the file again")
    return value


def open_regular_file(path: Path, error: ErrorFactory) -> BinaryIO:
    """Open the regular file `path`, links followed, for reading.

    The kind of the file is checked on the open descriptor, so nothing can be put in its place in between, and a pipe
    or a device is never waited for. Raises `error` with the path in the text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise missing_file_error(path, error) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL or a lone surrogate in the name
        raise error(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file; is {path.parent} the right folder?")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, error: ErrorFactory, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the regular file `path`, at most `max_bytes` long; a longer one is not read at all.

    Raises `error` with the path in the text.
    """
    with open_regular_file(path, error) as file:
        try:
            # The size is not everything: a file may grow meanwhile, and those of /proc have the size 0.
            long = os.fstat(file.fileno()).st_size > max_bytes
            data = b"" if long else file.read(max_bytes + 1)
        except OSError as exc:
            raise error(f"{path} cannot be read: {exc.strerror}") from exc
    if long or len(data) > max_bytes:
        raise too_large_error(path, max_bytes, error)
    return data


def missing_file_error(path: Path, error: ErrorFactory) -> Exception:
    """Return the `error` for a file that does not exist."""
    return error(f"{path} does not exist; is {path.parent} the right folder?")


def too_large_error(path: Path, max_bytes: int, error: ErrorFactory) -> Exception:
    """Return the `error` for a file of more than `max_bytes`."""
    return error(f"{path} is larger than {max_bytes:,} bytes and is not read; get the file again")


def read_json_object(path: Path, error: ErrorFactory, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the file `path`, at most `max_bytes` long, as one JSON object. Raises `error` with the path in the text."""
    return parse_json_object(read_bounded(path, error, max_bytes), str(path), error)


def is_regular_file(path: Path) -> bool:
    """Return whether `path` is a regular file, links followed; False for a name that no file can have."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def atomic_write(
    path: Path, mode: int = 0o600, *, durable: bool = True, temporary_path: Path | None = None
) -> Iterator[BinaryIO]:
    """Yield a new file that takes the place of `path`, which need not exist, when the block ends without an exception.

    Until then `path` is as it was; the file of a block that fails is removed. A link is replaced, not followed.

    Args:
        path: the name of the file; its folder exists.
        mode: the permissions.
        durable: wait until the bytes are on the disk, so that a power cut leaves the old or the new content. Not worth
            its time for what can be made again and carries a checksum.
        temporary_path: where the new file lies until then, for a `path` that one process writes at a time: what a
            killed process left there is removed. By default a name of its own beside `path`.

    Raises:
        OSError: it cannot be written, or `path` is a folder, a pipe or a device.
    """
    import tempfile

    if _is_special(path):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if temporary_path is None:
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary_path = Path(name)
    else:
        temporary_path.unlink(missing_ok=True)
        descriptor = os.open(temporary_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary_path.chmod(mode)
        temporary_path.replace(path)
    except BaseException:  # Ctrl-C too.
        temporary_path.unlink(missing_ok=True)
        raise


def _is_special(path: Path) -> bool:
    """Return whether `path` is neither a file nor a link, so that a rename would destroy it."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


def sync_folder(path: Path) -> None:
    """Wait until the names in the folder `path` are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # Some file systems cannot sync folders.
            raise
    finally:
        os.close(descriptor)


def is_private(status: os.stat_result) -> bool:
    """Return whether a file belongs to the user and others cannot write to it."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class NotPrivateError(OSError):
    """Others than the user could have written the file."""


def open_private(path: Path, *, buffering: int = -1) -> BinaryIO:
    """Open for reading the regular file `path`, which only the user can have written; a link is not followed.

    Raises:
        NotPrivateError: it belongs to another user, others can write it, or it is not a regular file.
        OSError: it cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not is_private(status):
        os.close(descriptor)
        raise NotPrivateError(errno.EPERM, "it is not a file that only you can write", str(path))
    return os.fdopen(descriptor, "rb", buffering)


def read_private(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of the file `path`, which lies in a folder that only the user can write.

    Return None if the file does not exist, cannot be read, is longer than `max_bytes`, or others could have written it.
    """
    try:
        if not is_private(path.parent.lstat()):
            return None
        with open_private(path) as file:
            data = file.read(max_bytes + 1)
    except OSError:
        return None
    return data if len(data) <= max_bytes else None


def make_private_folder(folder: Path) -> bool:
    """Create `folder` and those above it where they are missing. Return whether only the user can write into it.

    Raises OSError if it cannot be created.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return is_private(folder.lstat())
