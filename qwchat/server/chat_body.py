"""The body of a chat request: messages, and how to render them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from qwchat.errors import QwchatError
from qwchat.messages import Message
from qwchat.reasoning import CLOSING_TAG, OPENING_TAG
from qwchat.request import Prompt, PromptOptions
from qwchat.server.api_errors import ApiError, api_error_of
from qwchat.server.fields import Fields
from qwchat.server.reply_fields import ReplySpec, check_supported, read_request, read_streaming, top_logprobs
from qwchat.server.server_limits import ServerLimits

if TYPE_CHECKING:
    from qwchat.api import Model

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
"""Roles of the protocol, with those of the templates."""
_MOST_PARTS = 1024
_THINKING = "enable_thinking"


def read_chat(fields: Fields, model: Model, names: Sequence[str], limits: ServerLimits, loop_guard: int) -> ReplySpec:
    """Return the request for a chat reply.

    Raises:
        ApiError: a field is wrong.
        QwchatError: the model cannot render the conversation.
    """
    check_supported(fields, names)
    streaming, usage_chunk = read_streaming(fields)
    wanted = top_logprobs(fields, "top_logprobs")
    shown = (wanted or 0) if fields.boolean("logprobs") else None
    if shown is None and wanted:
        raise fields.error("top_logprobs", "needs logprobs: set it to true")
    request = read_request(
        fields, model.defaults, limits, loop_guard=loop_guard, logprobs=0 if shown is None else max(1, shown)
    )
    return ReplySpec(read_prompt(fields, model, limits), request, streaming, usage_chunk, shown)


def read_prompt(fields: Fields, model: Model, limits: ServerLimits) -> Prompt:
    """Return the rendered prompt of a conversation. Raises what `read_chat` raises."""
    given = fields.objects("messages", limits.messages)
    if not given:
        raise fields.error("messages", "must be an array of at least one message")
    options = _prompt_options(fields)
    messages = [_message(each, model) for each in given]
    try:
        if not _continues(fields):
            return model.prompt(messages, options=options)
        return _continued_prompt(given[-1], messages, model, options)
    except QwchatError as error:
        raise api_error_of(error, fields.param("messages")) from error


def _prompt_options(fields: Fields) -> PromptOptions:
    given = fields.nested("chat_template_kwargs")
    if given is None:
        return PromptOptions()
    given.boolean(_THINKING)  # A text such as "false" would be true to a template.
    return PromptOptions(template_variables=fields.any("chat_template_kwargs"))


def _continues(fields: Fields) -> bool:
    """Return whether the last message is an unfinished reply."""
    continues = fields.boolean("continue_final_message")
    if fields.boolean("add_generation_prompt", not continues) == continues:
        problem = "must be false with continue_final_message" if continues else "must be true for a new reply"
        raise fields.error("add_generation_prompt", problem)
    return continues


def _message(fields: Fields, model: Model) -> Message:
    role = fields.text("role") or ""
    if role not in _ROLES:
        raise fields.error("role", f"must be {', '.join(_ROLES)}: this server does not run tools")
    for unsupported in ("tool_calls", "function_call"):
        if fields.any(unsupported):
            raise fields.error(unsupported, "is not supported: this server does not run tools")
    content = _content(fields)
    thought = _thought(fields)
    if role == "assistant" and thought and model.thinks:
        content = f"{OPENING_TAG}\n{thought}\n{CLOSING_TAG}\n\n{content or ''}"
    if content is None:
        raise fields.error("content", "must be a string or an array of text parts")
    return Message(role=_ROLES[role], content=content)


def _thought(fields: Fields) -> str:
    return fields.text("reasoning_content") or fields.text("reasoning") or ""


def _content(fields: Fields) -> str | None:
    """Return the text of a message; None if it is missing."""
    if not isinstance(fields.any("content"), list):
        return fields.text("content")
    texts = []
    for part in fields.objects("content", _MOST_PARTS) or ():
        if part.text("type") != "text":
            raise part.error("type", "must be text: this model reads nothing else")
        text = part.text("text")
        if text is None:
            raise part.error("text", "must be a string")
        texts.append(text)
    return "".join(texts)


def _continued_prompt(last: Fields, messages: list[Message], model: Model, options: PromptOptions) -> Prompt:
    """Return the prompt that ends with an unfinished reply, which may have a thought."""
    if messages[-1]["role"] != "assistant":
        raise last.error("role", "must be assistant, since the last message is to be continued")
    thought, content = _thought(last), _content(last) or ""
    if thought and model.thinks:
        opened = bool(messages[:-1]) and model.prompt(messages[:-1], options=options).reasoning == "open"
        ids = model.tokenizer.encode_prompt(_reply_parts(thought, content, model, opened=opened))
        messages = [*messages[:-1], Message(role="assistant", content=content, token_ids=ids)]
    return model.prompt(messages, continuing=True, options=options)


def _reply_parts(thought: str, content: str, model: Model, *, opened: bool) -> Iterator[str | list[int]]:
    """Yield the parts of an unfinished reply with a thought, which the prompt may have opened. Tags may be tokens."""

    def tag(text: str) -> str | list[int]:
        token_id = model.tokenizer.special_ids.get(text)
        return text if token_id is None else [token_id]

    if not opened:
        yield tag(OPENING_TAG)
        yield "\n"
    yield thought
    if content:
        yield "\n"
        yield tag(CLOSING_TAG)
        yield f"\n\n{content}"


def check_length(prompt: Prompt, context: int, param: str) -> None:
    """Raise ApiError if the prompt does not fit in the context window."""
    if prompt.tokens > context:
        message = f"the prompt has {prompt.tokens:,} tokens and the context holds {context:,}: shorten it"
        raise ApiError(400, message, param, "context_length_exceeded")
    if not prompt.tokens:
        raise ApiError(400, "the prompt is empty: give at least one token", param)
