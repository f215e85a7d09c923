"""Read untrusted files within limits, read and create private files, and write files atomically."""

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
"""Most values of a JSON text: parsed, they take about 400 MB. The tokenizer.json of Qwen2 has 800,000."""
MAX_HEADER_BYTES = 16 << 20
"""Most bytes of the header of a safetensors file. The format allows 100 MB; 1,024 layers need 2 MB."""
MAX_NAME_BYTES = 255
"""Most bytes of a file name on the usual file systems."""
WEIGHTS_INDEX_NAME = "model.safetensors.index.json"
SINGLE_WEIGHTS_NAME = "model.safetensors"
COPIED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)
"""Files that a conversion copies from the checkpoint into the model folder, if they exist."""

ErrorFactory = Callable[[str], Exception]
"""Exception class, or function that makes an exception from a message."""


def parse_json(data: bytes, where: str, error: ErrorFactory) -> Any:
    """Return the value of a JSON text in UTF-8. Raises `error` if it is invalid; `where` names it in the message."""
    if sum(map(data.count, (b",", b":", b"[", b"{"))) > MAX_JSON_VALUES:
        raise error(f"{where} has more than {MAX_JSON_VALUES:,} JSON values; get the file again")
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
            f"{where} cannot be parsed as JSON: it contains a number with thousands of digits; get the file again"
        ) from exc


def parse_json_object(data: bytes, where: str, error: ErrorFactory) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises `error` if it is invalid; `where` names it in the message."""
    value = parse_json(data, where, error)
    if not isinstance(value, dict):
        raise error(f"{where} contains a JSON {type(value).__name__}, not an object; get the file again")
    return value


def open_regular_file(path: Path, error: ErrorFactory) -> BinaryIO:
    """Open a regular file for reading. Symbolic links are followed.

    The file type is checked on the open descriptor, so that the file cannot be exchanged after the check. Opening never
    waits for a pipe or device. Raises `error` with a message that names the path.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise missing_file_error(path, error) from exc
    except (OSError, ValueError) as exc:  # ValueError: the name contains NUL or a lone surrogate
        raise error(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file; is {path.parent} the right folder?")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, error: ErrorFactory, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Return the content of a regular file of at most `max_bytes`. A longer file is not read.

    Raises `error` with a message that names the path.
    """
    with open_regular_file(path, error) as file:
        try:
            # The reported size is not enough: the file may grow meanwhile, and files of /proc report the size 0.
            long = os.fstat(file.fileno()).st_size > max_bytes
            data = b"" if long else file.read(max_bytes + 1)
        except OSError as exc:
            raise error(f"{path} cannot be read: {exc.strerror}") from exc
    if long or len(data) > max_bytes:
        raise too_large_error(path, max_bytes, error)
    return data


def missing_file_error(path: Path, error: ErrorFactory) -> Exception:
    """Return the exception for a file that does not exist."""
    return error(f"{path} does not exist; is {path.parent} the right folder?")


def too_large_error(path: Path, max_bytes: int, error: ErrorFactory) -> Exception:
    """Return the exception for a file of more than `max_bytes`."""
    return error(f"{path} is larger than the limit of {max_bytes:,} bytes; get the file again")


def read_json_object(path: Path, error: ErrorFactory, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file of at most `max_bytes`. Raises `error` with a message that names the path."""
    return parse_json_object(read_bounded(path, error, max_bytes), str(path), error)


def is_regular_file(path: Path) -> bool:
    """Return whether `path` is a regular file or a link to one. Return False for an impossible file name."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


@contextlib.contextmanager
def atomic_write(
    path: Path, mode: int = 0o600, *, durable: bool = True, temporary_path: Path | None = None
) -> Iterator[BinaryIO]:
    """Yield a new file that replaces `path` when the block ends without an exception.

    Until then, `path` is unchanged. If the block fails, the new file is deleted. A symbolic link is replaced, not
    followed.

    Args:
        path: file to replace or create. Its folder must exist.
        mode: permissions of the new file.
        durable: wait until the bytes are on the disk, so that a power cut leaves either the old or the new content.
            Not worth the time for checksummed files that can be created again.
        temporary_path: path of the new file until it replaces `path`. Only valid if a single process writes `path` at
            a time; a leftover of a killed process is deleted. None: a unique name beside `path`.

    Raises:
        OSError: the file cannot be written, or `path` is a folder, pipe or device.
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
    except BaseException:  # includes KeyboardInterrupt
        temporary_path.unlink(missing_ok=True)
        raise


def _is_special(path: Path) -> bool:
    """Return whether `path` is neither a file nor a link. A rename must not replace such an entry."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))


def sync_folder(path: Path) -> None:
    """Wait until the directory entries of folder `path` are on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as exc:
        if exc.errno != errno.EINVAL:  # some file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def is_private(status: os.stat_result) -> bool:
    """Return whether a file belongs to this user and is not writable by others."""
    return status.st_uid == os.geteuid() and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


class NotPrivateError(OSError):
    """The file belongs to another user or is writable by others."""


def open_private(path: Path, *, buffering: int = -1) -> BinaryIO:
    """Open a file for reading that only this user can have written. Symbolic links are not followed.

    Raises:
        NotPrivateError: the file belongs to another user, is writable by others, or is not a regular file.
        OSError: the file cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or not is_private(status):
        os.close(descriptor)
        raise NotPrivateError(errno.EPERM, "it must be a regular file that only you can write", str(path))
    return os.fdopen(descriptor, "rb", buffering)


def read_private(path: Path, max_bytes: int) -> bytes | None:
    """Return the content of a private file in a private folder.

    Return None if the file is missing, unreadable, longer than `max_bytes`, or if another user could have written it.
    """
    try:
        if not is_private(path.parent.lstat()):
            return None
        with open_private(path) as file:
            data = file.read(max_bytes + 1)
    except OSError:
        return None
    return data if len(data) <= max_bytes else None


def read_secret(path: Path, max_bytes: int) -> bytes:
    """Return at most `max_bytes` of a file that only this user can read. Symbolic links are not followed.

    Raises:
        NotPrivateError: the file belongs to another user, others can read or write it, or it is not a regular file.
        OSError: the file cannot be read.
    """
    with open_private(path) as file:
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            raise NotPrivateError(errno.EPERM, "others can read it", str(path))
        return file.read(max_bytes)


def make_private_folder(folder: Path) -> bool:
    """Create `folder` and its parents if they are missing. Return whether only this user can write to it.

    Raises OSError if it cannot be created.
    """
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    return is_private(folder.lstat())
