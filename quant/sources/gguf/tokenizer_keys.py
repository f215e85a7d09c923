"""Names and numbers of the tokenizer in GGUF metadata, for the reader and the exporter."""

from __future__ import annotations

from enum import IntEnum

from quant.tokenizer_file import PATTERNS

MODEL = "tokenizer.ggml.model"
PRE_TOKENIZER = "tokenizer.ggml.pre"
TOKENS = "tokenizer.ggml.tokens"
TOKEN_TYPES = "tokenizer.ggml.token_type"
MERGES = "tokenizer.ggml.merges"
EOS_ID = "tokenizer.ggml.eos_token_id"
FURTHER_EOS_IDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
"""Ids of the tokens that end a turn and a message, for models that have more than one token that ends a reply."""
BOS_ID = "tokenizer.ggml.bos_token_id"
PADDING_ID = "tokenizer.ggml.padding_token_id"
ADD_BOS = "tokenizer.ggml.add_bos_token"
CHAT_TEMPLATE = "tokenizer.chat_template"
DEFAULT_CHAT_TEMPLATE = "tokenizer.chat_template.default"

BYTE_LEVEL_BPE = "gpt2"
"""Value of `MODEL` for byte-level BPE."""
SPLITS = {"qwen2": PATTERNS[0], "deepseek-r1-qwen": PATTERNS[0]}
"""Value of `PRE_TOKENIZER` -> regular expression that splits texts."""


class TokenType(IntEnum):
    """Types of tokens in `TOKEN_TYPES`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


END_TOKENS = ("<|im_end|>", "<|endoftext|>")
"""Tokens that end a reply in every model of the Qwen family that has them. llama.cpp knows them by content, too, since
GGUF names a single one."""
TEXT_TOKENS = frozenset(
    {
        *("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"),
        *("<｜User｜>", "<｜Assistant｜>", "<|EOT|>"),
    }
)
"""Added tokens that the published files of Qwen2.5, Qwen3 and DeepSeek-R1 do not call special. GGUF files call every
token with the form of a control token one."""


def looks_special(token: str) -> bool:
    """Return whether a token has the form of a control token, which GGUF files call one whatever the model says."""
    return token.startswith(("<|", "<｜")) and token.endswith(("|>", "｜>"))


TEMPERATURE = "general.sampling.temp"
TOP_K = "general.sampling.top_k"
SAMPLING = {
    TEMPERATURE: ("temperature", 0, 5),
    "general.sampling.top_p": ("top_p", 1e-6, 1),
    "general.sampling.min_p": ("min_p", 0, 1),
    "general.sampling.penalty_repeat": ("repetition_penalty", 1e-6, 1e6),
}
"""Key of a sampling default, except `TOP_K` -> its name in generation_config.json, lowest and highest value."""


def padding_token(token_id: int) -> str:
    """Return the content of an id that has no token: the model has more logits than tokens."""
    return f"[PAD{token_id}]"
