"""Models that evaluation can run: a Hugging Face folder through PyTorch, or any other folder through qwchat."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from .chatml import ChatML

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Logits = NDArray[np.float32]

Messages = list[dict[str, str]]
LONGEST = 400  # tokens of an answer, more than any correct one has


class Model(Protocol):
    """Operations that evaluation needs."""

    def logits(self, ids: list[int]) -> Logits:
        """Return the logits (tokens, vocabulary) behind each of `ids`."""

    def answer(self, messages: Messages) -> str:
        """Return the greedy answer to a conversation."""


class Checkpoint:
    """Hugging Face folder: its bf16 weights, computed in 32 bits."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch = torch
        self.chatml = ChatML.load(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, ids: list[int]) -> Logits:
        """Return the logits (tokens, vocabulary) behind each of `ids`."""
        with self.torch.inference_mode():
            found: Logits = self.model(self.torch.tensor([ids])).logits[0].numpy()
        return found

    def answer(self, messages: Messages) -> str:
        """Return the greedy answer to a conversation."""
        prompt = self.chatml.prompt(messages)
        with self.torch.inference_mode():
            found = self.model.generate(self.torch.tensor([prompt]), do_sample=False, max_new_tokens=LONGEST)
        ids = found[0, len(prompt) :].tolist()
        return self.chatml.tokenizer.decode(ids[: ids.index(self.chatml.end)] if self.chatml.end in ids else ids)


class Engine:
    """Model folder that qwchat runs."""

    def __init__(self, folder: Path) -> None:
        import qwchat

        self.model = qwchat.load(folder)

    def logits(self, ids: list[int]) -> Logits:
        """Return the logits (tokens, vocabulary) behind each of `ids`."""
        return np.asarray(self.model.logits(ids), dtype=np.float32)

    def answer(self, messages: Messages) -> str:
        """Return the greedy answer to a conversation."""
        *_, done = self.model.chat(messages, max_tokens=LONGEST)
        return str(done.text)


def open_model(kind: str, folder: Path) -> Model:
    """Open a model of the kind `torch` or `qwchat`."""
    return Checkpoint(folder) if kind == "torch" else Engine(folder)
