"""The small files of a model, and reading untrusted files: regular files only, a size limit, one clear error."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
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

Failure = Callable[[str], Exception]
"""The class of the exception to raise, made of its message."""


def parse_json(data: bytes, where: str, error: Failure) -> Any:
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


def parse_json_object(data: bytes, where: str, error: Failure) -> dict[str, Any]:
    """Parse `data` as one JSON object. `where` names the source in messages; raises `error`."""
    value = parse_json(data, where, error)
    if not isinstance(value, dict):
        raise error(f"{where} holds a JSON {type(value).__name__}, not an object; get the file again")
    return value


def open_regular(path: Path, error: Failure) -> BinaryIO:
    """Open the regular file `path`, links followed, for reading.

    The kind of the file is checked on the open descriptor, so nothing can be put in its place in between, and a pipe
    or a device is never waited for. Raises `error` with the path in the text.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as exc:
        raise absent(path, error) from exc
    except (OSError, ValueError) as exc:  # ValueError: a NUL or a lone surrogate in the name
        raise error(f"{path} cannot be read: {getattr(exc, 'strerror', None) or exc}") from exc
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file; is {path.parent} the right folder?")
    return os.fdopen(descriptor, "rb")


def read_bounded(path: Path, error: Failure, max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the regular file `path`, at most `max_bytes` long; a longer one is not read at all.

    Raises `error` with the path in the text.
    """
    with open_regular(path, error) as file:
        try:
            # The size is not everything: a file may grow meanwhile, and those of /proc have the size 0.
            long = os.fstat(file.fileno()).st_size > max_bytes
            data = b"" if long else file.read(max_bytes + 1)
        except OSError as exc:
            raise error(f"{path} cannot be read: {exc.strerror}") from exc
    if long or len(data) > max_bytes:
        raise too_large(path, max_bytes, error)
    return data


def absent(path: Path, error: Failure) -> Exception:
    """Return the `error` for a file that does not exist."""
    return error(f"{path} does not exist; is {path.parent} the right folder?")


def too_large(path: Path, max_bytes: int, error: Failure) -> Exception:
    """Return the `error` for a file of more than `max_bytes`."""
    return error(f"{path} is larger than {max_bytes:,} bytes and is not read; get the file again")


def read_json_object(path: Path, error: Failure, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the file `path`, at most `max_bytes` long, as one JSON object. Raises `error` with the path in the text."""
    return parse_json_object(read_bounded(path, error, max_bytes), str(path), error)


def is_regular(path: Path) -> bool:
    """Return whether `path` is a regular file, links followed; False for a name that no file can have."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def show_bytes(count: int) -> str:
    """A size for messages: 15.23 GB, 12.3 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
