"""The text of a calibration: files, or what the model writes itself."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from quant.presets import DEFAULT_PRESET
from qwchat.characters import sanitise_name
from qwchat.chat.view.progress import byte_progress
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_kernels
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams, read_stdin
from qwchat.models_folder import LocatedModel
from qwchat.settings.resolve import resolve

if TYPE_CHECKING:
    from quant.container import ModelFolder
    from quant.sources import Source
    from qwchat.calibration.windows_of_text import Ids

_ID_BYTES = 4  # of a token, for the progress
_WRITING_CONTEXT = 2048
_WRITER_NAME = "model"


def file_documents(model: Source | ModelFolder, names: Sequence[str], *, chat: bool) -> list[Ids]:
    """Return the token ids of each document in some files.

    Args:
        model: has the tokenizer and the chat template.
        names: the files; `-` is standard input.
        chat: whether they have conversations, one on each line.

    Raises:
        UsageError: a file cannot be read, is not text, or does not have the form of conversations.
        ModelError: the tokenizer is damaged.
    """
    from qwchat.calibration.text_encoder import text_encoder
    from qwchat.evaluation.documents import parse_conversations, read_text, reply_documents, text_document

    texts = [(name, read_stdin() if name == "-" else read_text(Path(name))) for name in names]
    encoder = text_encoder(model)
    if not chat:
        return [text_document(encoder, text, 0).ids for _, text in texts]
    found = []
    for name, text in texts:
        for messages in parse_conversations(text, "standard input" if name == "-" else sanitise_name(name)):
            # The last reply comes with the whole conversation before it.
            found += [each.ids for each in list(reply_documents(encoder, messages, 0))[-1:]]
    return found


def self_written_documents(
    located: LocatedModel,
    model: Source | ModelFolder,
    tokens: int,
    seed: int,
    folder: Path,
    dependencies: Dependencies,
    streams: Streams,
    threads: int | None,
) -> list[Ids]:
    """Let the model write documents with at least `tokens` tokens; return their token ids.

    A checkpoint is converted for that, into `folder`: the text of the quantised model is as good, and it is written
    sooner.

    Args:
        located: the model.
        model: the same, opened.
        tokens: how many tokens are wanted.
        seed: equal seeds give equal texts.
        folder: keeps the documents for a resumed run.
        dependencies: load the model.
        streams: where the progress is shown.
        threads: threads that compute; None for the setting.
    """
    from quant.container import ModelFolder
    from qwchat.calibration.self_written import SelfWrittenText

    fingerprint = model.source_fingerprint if isinstance(model, ModelFolder) else model.fingerprint
    text = SelfWrittenText(folder, fingerprint, tokens, seed, model.config.vocab_size)
    if text.complete:
        return text.documents
    context = min(_WRITING_CONTEXT, model.config.max_position_embeddings)
    changed = {} if threads is None else {"threads": str(threads)}
    settings = resolve({"ctx": str(context), "device": "cpu", **changed})
    ensure_kernels(dependencies, streams)
    converted = folder / _WRITER_NAME
    path = located.path if located.converted else _convert(located, converted, streams, settings["threads"])
    writer = LocatedModel(located.name, path, converted=True)
    title = f"{sanitise_name(located.name)} writes text"
    with (
        load_located(writer, settings, dependencies, streams) as loaded,
        byte_progress(title, tokens * _ID_BYTES, streams.screen, rewritable=streams.rewritable) as progress,
    ):
        for done in text.write(loaded):
            progress.update(done * _ID_BYTES, title)
    shutil.rmtree(converted, ignore_errors=True)
    return text.documents


def _convert(located: LocatedModel, destination: Path, streams: Streams, threads: int | None) -> Path:
    """Quantise a checkpoint for the time of its writing; return the model folder."""
    from quant import convert
    from qwchat.cli.convert_progress import run_conversion

    events = convert(located.path, destination, preset=DEFAULT_PRESET, resume=True, threads=threads)
    run_conversion(events, f"quantising {sanitise_name(located.name)}", streams, show_notices=False)
    return destination
