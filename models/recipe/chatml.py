"""Encode dialogues as token ids in ChatML, and mark the tokens that the model has to predict."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tokenizers import Tokenizer

from .turns import Dialogue

DEFAULT_SYSTEM = "You are a helpful assistant."
IM_START, IM_END, END_OF_TEXT = "<|im_start|>", "<|im_end|>", "<|endoftext|>"


class ChatML:
    """Encoder of dialogues with one tokenizer."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.start = tokenizer.token_to_id(IM_START)
        self.end = tokenizer.token_to_id(IM_END)
        self.newline = self.ids("\n")

    @classmethod
    def load(cls, folder: Path) -> ChatML:
        """Load the tokenizer of a model folder."""
        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def ids(self, text: str) -> list[int]:
        """Return the ids of plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def measure(self) -> Callable[[str], int]:
        """Return a function that counts the tokens of a text."""
        return lambda text: len(self.ids(text))

    def message(self, role: str, text: str) -> list[int]:
        """Return the ids of one whole message."""
        return [self.start, *self.ids(f"{role}\n{text}"), self.end, *self.newline]

    def encode(self, dialogue: Dialogue) -> tuple[list[int], list[bool]]:
        """Return the ids of a dialogue, and for each id True if the model has to predict it.

        The model predicts the answers and the token that ends each of them.
        """
        system = DEFAULT_SYSTEM if dialogue.system is None else dialogue.system
        ids = self.message("system", system)
        predicted = [False] * len(ids)
        for turn in dialogue.turns:
            before = [*self.message("user", turn.ask), self.start, *self.ids("assistant\n")]
            answer = [*self.ids(turn.answer), self.end]
            ids += before + answer + self.newline
            predicted += [False] * len(before) + [True] * len(answer) + [False] * len(self.newline)
        return ids, predicted

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """Return the ids of messages up to the start of the assistant's reply."""
        if not messages or messages[0]["role"] != "system":
            messages = [{"role": "system", "content": DEFAULT_SYSTEM}, *messages]
        ids = [token for message in messages for token in self.message(message["role"], message["content"])]
        return [*ids, self.start, *self.ids("assistant\n")]
