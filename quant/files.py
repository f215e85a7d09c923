"""The small files of a model, and reading untrusted JSON: bounded size, one clear error, always an object."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from quant.errors import QuantError

MAX_JSON_BYTES = 64 << 20
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


def parse_json_object(data: bytes, where: str, error: type[QuantError]) -> dict[str, Any]:
    """Parse `data` as one JSON object. `where` names the source in messages; raises `error`."""
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as exc:
        raise error(f"{where} is not UTF-8 text ({exc.reason} at byte {exc.start}); get the file again") from exc
    except json.JSONDecodeError as exc:
        raise error(f"{where} is not valid JSON: {exc.msg} at line {exc.lineno}; get the file again") from exc
    except (RecursionError, ValueError) as exc:  # ValueError: an integer of thousands of digits
        raise error(f"{where} cannot be parsed as JSON ({exc}); get the file again") from exc
    if not isinstance(value, dict):
        raise error(f"{where} holds a JSON {type(value).__name__}, not an object; get the file again")
    return value


def read_bounded(path: Path, error: type[QuantError], max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """Read the regular file `path`, at most `max_bytes` long. Raises `error` with the path in the text."""
    if not path.is_file():
        raise error(f"{path} does not exist or is no file; is {path.parent} the right folder?")
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as exc:
        raise error(f"{path} cannot be read: {exc.strerror}") from exc
    if len(data) > max_bytes:
        raise error(f"{path} is larger than {max_bytes:,} bytes and is not read")
    return data


def read_json_object(path: Path, error: type[QuantError], max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """Read the file `path`, at most `max_bytes` long, as one JSON object. Raises `error` with the path in the text."""
    return parse_json_object(read_bounded(path, error, max_bytes), str(path), error)


def show_bytes(count: int) -> str:
    """A size for messages: 15.23 GB, 12.3 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
