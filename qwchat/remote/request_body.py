"""The JSON body of a request for a reply."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from qwchat.messages import Message
from qwchat.reasoning import OPENING_TAG, split_reply
from qwchat.request import PromptOptions, ReplyConstraint, Request

_SAMPLING_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repeat_penalty": "repetition_penalty",
    "presence_penalty": "presence_penalty",
    "frequency_penalty": "frequency_penalty",
}
"""Names of sampling parameters in `SamplingParams` and in a request."""
SAMPLING_NAMES = frozenset(_SAMPLING_FIELDS)


def chat_body(
    model: str,
    messages: Sequence[dict[str, Any]],
    request: Request,
    options: PromptOptions,
    *,
    continues_with: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the body of a chat completion.

    Args:
        model: name of the model on the server.
        messages: the conversation, as `sent_messages` returns it.
        request: how to generate the reply.
        options: how to render the prompt.
        continues_with: fields that ask for more of the last message; None for a new one.
    """
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": request.seed,
    }
    for name, sent_name in _SAMPLING_FIELDS.items():
        if name not in request.unset:
            body[sent_name] = getattr(request.settings, name)
    if request.max_tokens is not None:
        body["max_tokens"] = request.max_tokens
    if request.stop:
        body["stop"] = list(request.stop)
    if request.logprobs:
        body["logprobs"], body["top_logprobs"] = True, request.logprobs
    if options.variables:
        body["chat_template_kwargs"] = dict(options.variables)
    if request.constraint is not None:
        body |= _constraint_fields(request.constraint)
    return body | (continues_with or {})


def sent_messages(messages: Sequence[Message], *, continuing: bool, options: PromptOptions) -> list[dict[str, Any]]:
    """Return the messages of a request. Thoughts of earlier replies are left out unless they are to be kept."""
    found = []
    for number, message in enumerate(messages):
        unfinished = continuing and number == len(messages) - 1
        found.append(_sent(message, options) if not unfinished else _as_is(message))
    return found


def _as_is(message: Message) -> dict[str, Any]:
    return {"role": message["role"], "content": message["content"]}


def _sent(message: Message, options: PromptOptions) -> dict[str, Any]:
    if message["role"] != "assistant" or not message["content"].lstrip().startswith(OPENING_TAG):
        return _as_is(message)
    thought, answer = split_reply(message["content"], "optional")
    kept = {"reasoning_content": thought} if options.keep_thoughts and thought else {}
    return {"role": "assistant", "content": answer, **kept}


def _constraint_fields(constraint: ReplyConstraint) -> dict[str, Any]:
    """Return the fields that ask the server to keep to a constraint. The reply is checked here as well."""
    if constraint.kind == "json-schema":
        schema = {"name": "reply", "schema": json.loads(constraint.source), "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}
    if constraint.kind == "regex":
        return {"structured_outputs": {"regex": constraint.source}}
    from qwchat.constraints import split_choices

    return {"structured_outputs": {"choice": [text.replace(r"\,", ",") for text in split_choices([constraint.source])]}}
