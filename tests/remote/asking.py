"""One request to a model on a scripted server, and its outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwchat.errors import QwchatError
from qwchat.events import Done, TextEvent, TextStep
from qwchat.messages import Message
from qwchat.remote.client import EndpointClient, ServerModel
from qwchat.remote.model import RemoteModel
from qwchat.request import PromptOptions, Request, SamplingParams
from qwchat.settings.endpoint import Endpoint
from qwchat.settings.endpoint_key import EndpointKey
from tests.remote.scripted_server import Action, ScriptedServer

HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
KEY = EndpointKey("sk-secret", "a test")
NONE_SET = frozenset({"temperature", "top_p", "top_k", "min_p", "repeat_penalty"})
NONE_SET |= {"presence_penalty", "frequency_penalty"}


class Asked:
    """The outcome of one request."""

    def __init__(self, *replies: Action, software: str = "", key: EndpointKey | None = KEY, **others: Any) -> None:
        self.server = ScriptedServer(replies)
        self.notices: list[str] = []
        self._software, self._key, self._others = software, key, others
        self.events: list[TextEvent] = []
        self.error: QwchatError | None = None

    def __enter__(self) -> Asked:
        self.server.__enter__()
        endpoint = Endpoint.parse(self.server.url, "endpoint")
        seconds = self._others.get("seconds", 60.0)
        client = EndpointClient(endpoint, self._key, seconds, self.notices.append, first_wait=0.0)
        self.model = RemoteModel(client, ServerModel("m", 2048, self._software))
        return self

    def __exit__(self, *unused: object) -> None:
        self.server.__exit__(None, None, None)

    def ask(
        self,
        messages: Sequence[Message] = HELLO,
        *,
        options: PromptOptions | None = None,
        continuing: bool = False,
        cancel: Any = None,
        **request: Any,
    ) -> Asked:
        prompt = self.model.prompt(messages, continuing=continuing, options=options)
        self.events, self.error = [], None
        sampling = {"settings": SamplingParams(), "seed": 7, "unset": NONE_SET}
        try:
            self.events.extend(self.model.stream(prompt, Request(**sampling | request), cancel))
        except QwchatError as error:
            self.error = error
        return self

    @property
    def done(self) -> Done:
        assert isinstance(self.events[-1], Done), self.error
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(each.text for each in self.events if isinstance(each, TextStep) and not each.reasoning)

    @property
    def thought(self) -> str:
        return "".join(each.text for each in self.events if isinstance(each, TextStep) and each.reasoning)

    @property
    def message(self) -> str:
        """The error, which is one line, names the server and does not show the key."""
        assert self.error is not None
        message = str(self.error)
        assert "\n" not in message
        assert "sk-secret" not in message
        return message.replace(self.server.name, "HOST")

    @property
    def sent(self) -> Any:
        return self.server.chats[-1]
