"""The body of a completion request: a text to continue, without a template. Also the bodies about tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwchat.request import Prompt
from qwchat.server.chat_body import read_prompt
from qwchat.server.fields import Fields
from qwchat.server.reply_fields import ReplySpec, check_supported, read_request, read_streaming, top_logprobs
from qwchat.server.server_limits import ServerLimits

if TYPE_CHECKING:
    from qwchat.api import Model


def read_completion(
    fields: Fields, model: Model, names: Sequence[str], limits: ServerLimits, loop_guard: int
) -> ReplySpec:
    """Return the request for a completion. Raises ApiError if a field is wrong."""
    check_supported(fields, names)
    streaming, usage_chunk = read_streaming(fields)
    shown = top_logprobs(fields, "logprobs")
    request = read_request(
        fields, model.defaults, limits, loop_guard=loop_guard, logprobs=0 if shown is None else max(1, shown)
    )
    return ReplySpec(Prompt(_prompt_ids(fields, model, limits)), request, streaming, usage_chunk, shown)


def _prompt_ids(fields: Fields, model: Model, limits: ServerLimits) -> list[int]:
    """Return the token ids of a prompt: a string, an array of one string, or an array of token ids."""
    prompt = fields.any("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], list):
        fields = Fields({"prompt": prompt[0]})
    if isinstance(prompt, list) and not (prompt and isinstance(prompt[0], str)):
        return fields.token_ids("prompt", limits.json_values, model.tokenizer.vocab_size) or []
    texts = fields.texts("prompt", 1)
    if not texts:
        raise fields.error("prompt", "must be a string or an array of token ids")
    return model.encode(texts[0])


def read_tokenize(fields: Fields, model: Model, limits: ServerLimits) -> list[int]:
    """Return the token ids of `messages` as a prompt, or of the text in `prompt` or `content`. Raises ApiError."""
    if fields.has("messages"):
        return list(read_prompt(fields, model, limits).ids)
    for name in ("prompt", "content"):
        text = fields.text(name)
        if text is not None:
            return model.encode(text)
    raise fields.error("prompt", "must be a string, or send messages")


def read_detokenize(fields: Fields, model: Model, limits: ServerLimits) -> str:
    """Return the text of the token ids in `tokens`. Raises ApiError."""
    ids = fields.token_ids("tokens", limits.json_values, model.tokenizer.vocab_size)
    if ids is None:
        raise fields.error("tokens", "must be an array of token ids")
    return model.decode(ids)
