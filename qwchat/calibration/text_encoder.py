"""Tokenizer and chat template of a model that is not converted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from quant.container import ModelFolder
from quant.sources import Source
from qwchat.messages import Message
from qwchat.request import Prompt, PromptOptions
from qwchat.text.prompts import build_prompt
from qwchat.text.template import ChatTemplate
from qwchat.text.tokenizer import Tokenizer


class TextEncoder:
    """Encodes texts and conversations as `qwchat.api.Model` does.

    Args:
        folder: folder with the tokenizer's files.
        vocab_size: number of the model's logits.

    Raises:
        ModelError: a file is missing or damaged.
        TemplateError: the template cannot be compiled.
    """

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self._tokenizer = Tokenizer.from_folder(folder, None, vocab_size)
        self._template = ChatTemplate.from_folder(folder)

    def encode(self, text: str) -> list[int]:
        """Return the token ids of `text`. Control tokens in it are treated as plain text."""
        return self._tokenizer.encode(text)

    def prompt(
        self, messages: Sequence[Message], *, continuing: bool = False, options: PromptOptions | None = None
    ) -> Prompt:
        """Render the prompt of a conversation; see `qwchat.api.Model.prompt`."""
        return build_prompt(self._tokenizer, self._template, messages, continuing=continuing, options=options)


def text_encoder(model: Source | ModelFolder) -> TextEncoder:
    """Return the encoder of a source, whose small files may exist in memory only, or of a model folder."""
    if isinstance(model, ModelFolder):
        return TextEncoder(model.path, model.config.vocab_size)
    with TemporaryDirectory(prefix="qwchat-") as folder:
        for name, data in model.files.items():
            (Path(folder) / name).write_bytes(data)
        return TextEncoder(Path(folder), model.config.vocab_size)
