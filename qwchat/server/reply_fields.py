"""Fields that requests for chat replies and for completions share: sampling, length, stop strings, streaming."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qwchat.errors import UsageError
from qwchat.limits import MAX_INTEGER, MAX_LOGPROBS, MAX_SEED
from qwchat.request import Prompt, Request, SamplingParams, random_seed
from qwchat.server.api_errors import ApiError, bad_request
from qwchat.server.constraint_fields import read_constraint
from qwchat.server.fields import Fields
from qwchat.server.server_limits import ServerLimits

_NUMBERS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "min_p": "min_p",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
    "repetition_penalty": "repeat_penalty",
}
"""Fields of a body, with the names of the sampling parameters."""
_UNSUPPORTED = (
    *("tools", "functions", "function_call", "logit_bias", "audio", "web_search_options", "suffix", "echo"),
    *("stop_token_ids", "bad_words", "allowed_token_ids", "min_tokens", "ignore_eos", "length_penalty"),
    *("use_beam_search", "prompt_logprobs", "grammar", "json_schema", "mirostat", "dry_multiplier"),
)
"""Fields that change the reply, and that this server does not know. Others that it does not know are ignored."""


@dataclass(frozen=True)
class ReplySpec:
    """A request that was read, ready for the model.

    Attributes:
        prompt: the rendered prompt.
        request: how to generate the reply.
        streaming: send the reply in pieces.
        usage_chunk: end a stream with a piece that counts the tokens.
        top_logprobs: number of most likely tokens to list per token; None without log-probabilities.
    """

    prompt: Prompt
    request: Request
    streaming: bool
    usage_chunk: bool
    top_logprobs: int | None


def check_supported(fields: Fields, names: Sequence[str]) -> None:
    """Raise ApiError if the body asks for another model, or for something that this server cannot do."""
    if fields.has("model") and fields.text("model") not in names:
        message = f"there is no model {str(fields.any('model'))[:80]!r}: this server has {names[0]!r}"
        raise ApiError(404, message, "model", "model_not_found")
    for name in _UNSUPPORTED:
        if fields.any(name):
            raise fields.error(name, "is not supported by this server: leave it out", "unsupported_parameter")
    if fields.any("tool_choice") not in (None, "none", "auto"):
        raise fields.error("tool_choice", "is not supported by this server: leave it out", "unsupported_parameter")
    for name in ("n", "best_of"):
        if fields.integer(name, 0, MAX_INTEGER) not in (None, 1):
            raise fields.error(name, "must be 1: send a request for each reply", "unsupported_parameter")


def read_request(
    fields: Fields,
    defaults: SamplingParams,
    limits: ServerLimits,
    *,
    loop_guard: int,
    logprobs: int,
) -> Request:
    """Return how to generate the reply.

    Args:
        fields: the body.
        defaults: sampling parameters that the body leaves out.
        limits: limits of the server.
        loop_guard: repeated tokens after which a reply ends; 0 is off.
        logprobs: number of most likely tokens to report per token; 0 is off.

    Raises:
        ApiError: a field is wrong.
    """
    seed = fields.integer("seed", 0, MAX_SEED)
    stop = fields.texts("stop", limits.stop_strings)
    if not all(stop):
        raise fields.error("stop", "must not contain an empty string")
    return Request(
        _sampling(fields, defaults),
        random_seed() if seed is None else seed,
        max_tokens=_max_tokens(fields),
        stop=stop,
        loop_guard=loop_guard,
        constraint=read_constraint(fields),
        logprobs=logprobs,
    )


def read_streaming(fields: Fields) -> tuple[bool, bool]:
    """Return whether to stream, and whether the stream ends with the number of tokens. Raises ApiError."""
    options = fields.nested("stream_options")
    return fields.boolean("stream"), options is not None and options.boolean("include_usage")


def top_logprobs(fields: Fields, name: str) -> int | None:
    """Return the number of most likely tokens in the field `name`. Raises ApiError."""
    return fields.integer(name, 0, MAX_LOGPROBS)


def _sampling(fields: Fields, defaults: SamplingParams) -> SamplingParams:
    given = {own: value for name, own in _NUMBERS.items() if (value := fields.number(name)) is not None}
    top_k = fields.integer("top_k", -1, MAX_INTEGER)
    if top_k is not None:
        given["top_k"] = max(top_k, 0)  # Some servers write "off" as -1.
    for name, own in _NUMBERS.items():  # One by one, so that an error names its field.
        if own in given:
            try:
                SamplingParams().changed(**{own: given[own]})
            except UsageError as error:
                raise bad_request(str(error).replace(own, name, 1), fields.param(name)) from error
    return defaults.changed(**given)


def _max_tokens(fields: Fields) -> int | None:
    newer = fields.integer("max_completion_tokens", 1, MAX_INTEGER)
    older = fields.integer("max_tokens", 1, MAX_INTEGER)
    if newer is not None and older is not None and newer != older:
        raise fields.error("max_tokens", "and max_completion_tokens differ: send one")
    return older if newer is None else newer
