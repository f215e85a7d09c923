"""Writing a conversation to a file, as Markdown for people or as JSON for programs."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

from qwchat.chat.session import Session
from qwchat.errors import UsageError


def as_markdown(session: Session, model_name: str) -> str:
    """The conversation under headings; the text of every turn is verbatim."""
    headings = {"system": "System", "user": "You", "assistant": model_name}
    parts = [f"# Conversation with {model_name}"]
    parts += [f"## {headings[message['role']]}\n\n{message['content']}" for message in session.messages]
    return "\n\n".join(parts) + "\n"


def as_json(session: Session, model_name: str) -> str:
    """The conversation as one object: model, messages (role, content), settings."""
    controls = session.controls
    document = {
        "model": model_name,
        "messages": [{"role": turn["role"], "content": turn["content"]} for turn in session.messages],
        "settings": {
            **asdict(controls.settings),
            "seed": controls.seed,
            "max_tokens": controls.max_tokens,
            "stop": list(controls.stop),
        },
    }
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def save(session: Session, model_name: str, path: Path, *, overwrite: bool) -> None:
    """Write the conversation to ``path``: JSON where its name ends in ``.json``, Markdown otherwise.

    The file appears whole or not at all. Raises UsageError where nothing was said, where the file exists and
    ``overwrite`` is False, and where it cannot be written.
    """
    if not session.turns:
        raise UsageError("nothing was said yet, so there is nothing to save")
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists already: choose another name")
    text = (as_json if path.suffix.lower() == ".json" else as_markdown)(session, model_name)
    try:
        _write_whole(path, text)
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _write_whole(path: Path, text: str) -> None:
    umask = os.umask(0)
    os.umask(umask)
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", newline="\n", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        try:
            file.write(text)
            file.flush()
            Path(file.name).chmod(0o666 & ~umask)
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
