"""GGUF metadata of the tokenizer, the chat template and the sampling defaults of a model folder.

The inverse of `quant.sources.gguf.tokenizer_files`; llama.cpp's conversion writes the same keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

from quant.errors import ContainerError
from quant.json_fields import MAX_ID, JsonFields, is_unicode
from quant.model_config import ModelConfig
from quant.safe_files import parse_json_object
from quant.sources.gguf import tokenizer_keys as keys
from quant.sources.gguf.tokenizer_keys import TokenType
from quant.tokenizer_file import parse

TOKENIZER_NAME = "tokenizer.json"
CONFIG_NAME = "tokenizer_config.json"
DEFAULTS_NAME = "generation_config.json"
TEMPLATE_NAME = "chat_template.jinja"
_AGAIN = "convert the model again"
_OTHER_KIND = "export the model as a safetensors checkpoint"


def tokenizer_metadata(files: Mapping[str, bytes], config: ModelConfig, where: str) -> dict[str, object]:
    """Return the metadata of a tokenizer by key.

    Args:
        files: content of the small files of a model folder, by name.
        config: hyperparameters of the model.
        where: the model folder, for messages.

    Returns:
        Values of the types bool, str, int (u32), float (f32), list of str, and list of int (i32).

    Raises:
        ContainerError: a file is missing or damaged, or GGUF cannot hold the tokenizer.
    """
    return _TokenizerExport(files, config, where).metadata()


class _TokenizerExport:
    def __init__(self, files: Mapping[str, bytes], config: ModelConfig, where: str) -> None:
        self._files, self._model_config, self._where = files, config, where
        if TOKENIZER_NAME not in files:
            self._refuse(f"{TOKENIZER_NAME} is missing", _AGAIN)
        self._definition = parse(files[TOKENIZER_NAME], f"{where}/{TOKENIZER_NAME}", ContainerError)
        self._config = self._read_json(CONFIG_NAME)
        self._defaults = self._read_json(DEFAULTS_NAME)

    def _refuse(self, problem: str, remedy: str) -> NoReturn:
        raise ContainerError(f"{self._where}: {problem}; {remedy}")

    def _read_json(self, name: str) -> JsonFields:
        """Return typed access to a JSON file, which is empty if the file is missing."""
        where = f"{self._where}/{name}"
        values = parse_json_object(self._files.get(name, b"{}"), where, ContainerError)
        return JsonFields(values, where, ContainerError, f"; {_AGAIN}")

    def metadata(self) -> dict[str, object]:
        definition = self._definition
        split = next((name for name, pattern in keys.SPLITS.items() if pattern == definition.pattern), None)
        if split is None or definition.ignore_merges or any(" " in left + right for left, right in definition.merges):
            self._refuse(f"GGUF has no name for the pre-tokenizer or the merges of {TOKENIZER_NAME}", _OTHER_KIND)
        tokens, types = self._tokens()
        bos_id = self._bos_id()
        values: dict[str, object] = {
            keys.MODEL: keys.BYTE_LEVEL_BPE,
            keys.PRE_TOKENIZER: split,
            keys.TOKENS: tokens,
            keys.TOKEN_TYPES: types,
            keys.MERGES: [f"{left} {right}" for left, right in definition.merges],
            **self._eos_ids(),
            keys.BOS_ID: bos_id,
            keys.PADDING_ID: self._id("pad_token", self._defaults.token_ids("pad_token_id")),
            keys.ADD_BOS: self._adds_bos() and bos_id in definition.special_ids.values(),
            keys.CHAT_TEMPLATE: self._template(),
            **self._sampling(),
        }
        return {key: value for key, value in values.items() if value is not None}

    def _tokens(self) -> tuple[list[str], list[int]]:
        """Return the token and its type of every logit of the model."""
        rows = self._model_config.vocab_size
        definition = self._definition
        highest = max(*definition.vocab.values(), *definition.special_ids.values())
        if highest >= rows:
            self._refuse(
                f"{TOKENIZER_NAME} has the token id {highest:,}, but config.json has a vocab_size of {rows:,}",
                "restore both from the same model",
            )
        tokens = [keys.padding_token(token_id) for token_id in range(rows)]
        types = [int(TokenType.UNUSED)] * rows
        for token, token_id in definition.vocab.items():
            tokens[token_id], types[token_id] = token, int(TokenType.NORMAL)
        for token, token_id in definition.special_ids.items():
            controls = token not in definition.text_tokens or keys.looks_special(token)
            tokens[token_id] = token
            types[token_id] = int(TokenType.CONTROL if controls else TokenType.USER_DEFINED)
        return tokens, types

    def _adds_bos(self) -> bool:
        """Return whether a text begins with the BOS token: as the configuration says, or as the post-processor does."""
        return self._config.boolean("add_bos_token", self._definition.first_id is not None)

    def _bos_id(self) -> int | None:
        """Return the id of the token that begins a text: of the post-processor, or as the files name it."""
        if self._adds_bos() and self._definition.first_id is not None:
            return self._definition.first_id
        return self._id("bos_token", (*self._defaults.token_ids("bos_token_id"), self._model_config.bos_token_id))

    def _eos_ids(self) -> dict[str, int | None]:
        """Return the ids of the tokens that end a reply by key; those of `END_TOKENS` need no key."""
        ids = (*self._defaults.token_ids("eos_token_id"), *self._model_config.eos_token_ids)
        eos = self._id("eos_token", ids)
        known = {eos, *map(self._definition.special_ids.get, keys.END_TOKENS)}
        further = [self._checked(token_id, "eos_token_id") for token_id in dict.fromkeys(ids) if token_id not in known]
        if len(further) > len(keys.FURTHER_EOS_IDS):
            self._refuse(f"{len(further) + 1} tokens end a reply, more than GGUF can name", _OTHER_KIND)
        return {keys.EOS_ID: eos, **dict(zip(keys.FURTHER_EOS_IDS, further, strict=False))}

    def _id(self, name: str, others: tuple[int | None, ...]) -> int | None:
        """Return the id of the token that tokenizer_config.json calls `name`, or the first of `others`."""
        value = self._config.values.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        named = self._definition.special_ids.get(content) if isinstance(content, str) else None
        found = next((token_id for token_id in (named, *others) if token_id is not None), None)
        return None if found is None else self._checked(found, name)

    def _checked(self, token_id: int, name: str) -> int:
        if token_id >= self._model_config.vocab_size:
            self._refuse(f"{name} has the id {token_id:,}, which is outside the vocabulary", _AGAIN)
        return token_id

    def _template(self) -> str | None:
        """Return the default chat template: that of `chat_template.jinja`, or of tokenizer_config.json."""
        if TEMPLATE_NAME in self._files:
            try:
                return self._files[TEMPLATE_NAME].decode()
            except UnicodeDecodeError:
                self._refuse(f"{TEMPLATE_NAME} is not UTF-8 text", _AGAIN)
        value = self._config.values.get("chat_template")
        named = [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
        value = next((item.get("template") for item in named if item.get("name") == "default"), value)
        if isinstance(value, str) and not is_unicode(value):
            self._refuse(f"chat_template in {CONFIG_NAME} has a lone surrogate", _AGAIN)
        return value if isinstance(value, str) else None

    def _sampling(self) -> dict[str, int | float]:
        """Return the sampling defaults by key; none for a model whose replies are greedy."""
        if not self._defaults.boolean("do_sample", False):
            return {}
        found: dict[str, int | float] = {keys.TEMPERATURE: 1.0}  # of a file without one, as in transformers
        for key, (name, low, high) in keys.SAMPLING.items():
            value = self._defaults.optional_number(name, low, high)
            if value is not None:
                found[key] = value
        top_k = self._defaults.integer("top_k", 0, MAX_ID, 0)
        return {**found, keys.TOP_K: top_k} if top_k else found
