"""The open model of a chat, and the models that it can switch to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from quant.errors import QuantError
from quant.units import data_size
from quant.wording import ArgumentMessage
from qwchat import models_folder
from qwchat.chat.chat_models import ModelChoice, OpenedModel
from qwchat.chat.kv_snapshots import KVSnapshots
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.open_endpoint import connect, open_with
from qwchat.cli.reply_models import LocalReplyModel, RemoteReplyModel, ReplyModel
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError, NotEnoughMemoryError, UsageError
from qwchat.models_folder import LocatedModel
from qwchat.settings.endpoint import Endpoint
from qwchat.settings.resolve import Settings


class LoadedModels:
    """The model that replies in a chat, and one that is about to. Closing it closes them.

    Args:
        model: the first model.
        dependencies: opens models.
        streams: where the progress of a conversion is shown.

    Attributes:
        model: the model that replies.
        snapshots: saves its KV cache; None until the session is connected.
    """

    def __init__(self, model: ReplyModel, dependencies: Dependencies, streams: Streams) -> None:
        self.model = model
        self.snapshots: KVSnapshots | None = None
        self._next: ReplyModel | None = None
        self._client = model.client if isinstance(model, RemoteReplyModel) else None
        self._dependencies, self._streams = dependencies, streams

    @property
    def _located(self) -> LocatedModel | None:
        """Where the current model is on this machine; None if it is on a server."""
        return self.model.located if isinstance(self.model, LocalReplyModel) else None

    def choices(self) -> Sequence[ModelChoice]:
        """Return the models of the server, if the chat has one, and those that `qwchat list` shows, by name."""
        found = {model.name: model for model in models_folder.available()}
        located = self._located
        if located is not None:
            current = found.get(located.name)
            if current is None or current.path != located.path:
                found[str(located.path)] = located
        here = [
            ModelChoice(name, _size(model), located is not None and model.path == located.path)
            for name, model in sorted(found.items())
        ]
        return [*self._remote_choices(), *here]

    def _remote_choices(self) -> list[ModelChoice]:
        """Return the models that the server listed when it was asked last."""
        client, current = self._client, self.model.info
        if client is None:
            return []
        is_here = current.endpoint == client.endpoint.url
        listed = [model.name for model in client.listed]
        names = [current.name, *listed] if is_here and current.name not in listed else listed
        return [ModelChoice(name, f"on {client.endpoint.name}", is_here and name == current.name) for name in names]

    def open(self, name: str, settings: Settings) -> OpenedModel | None:
        """Open a model beside the current one, converting a checkpoint first; None if it is the current one.

        Raises:
            QwchatError: it cannot be opened, or Ctrl-C was pressed.
        """
        stay = f"; {self.model.opened.name} stays the model of this chat"
        try:
            with _interruptible():
                opened = self._open_remote(name, settings) or self._open_local(name, settings)
        except KeyboardInterrupt:
            raise UsageError(f"stopped opening {name}{stay}") from None
        except QuantError as error:
            raise ModelError(ArgumentMessage(error)) from error
        except (NotEnoughMemoryError, MemoryError) as error:
            leave = f"; or leave the chat and start qwchat -c -m {name}, which opens one model alone"
            raise NotEnoughMemoryError(ArgumentMessage(error if error.args else "out of memory", leave)) from error
        if opened is None or (opened.opened.fingerprint == self.model.opened.fingerprint and self._located is None):
            return None
        self._next = opened
        return opened.opened

    def _open_local(self, name: str, settings: Settings) -> ReplyModel | None:
        """Open a model on this machine; None if it is the current one."""
        located = ensure_model(name, self._dependencies, self._streams, settings["threads"], may_pull=False)
        if self._located is not None and located.path == self._located.path:
            return None
        return LocalReplyModel(located, load_located(located, settings, self._dependencies, self._streams))

    def _open_remote(self, name: str, settings: Settings) -> ReplyModel | None:
        """Open a model on a server: that of a URL, or the one of this chat if it has the model; otherwise None."""
        if name.startswith(("http://", "https://")):
            url, _, wanted = name.partition(" ")
            client = connect(Endpoint.parse(url, "the URL"), settings, self._streams)
            return open_with(client, wanted.strip() or None, settings, self._streams)
        if self._client is None or name not in [model.name for model in self._client.listed]:
            return None
        return open_with(self._client, name, settings, self._streams)

    def keep(self, opened: OpenedModel) -> None:
        """Close the model that replied before `opened`."""
        assert self._next is not None, "the model was opened"
        before = self.model
        self.model, self._next = self._next, None
        if isinstance(self.model, RemoteReplyModel):
            self._client = self.model.client
        if self.snapshots is not None:
            self.snapshots.switch_model(self.model.snapshot_model)
        before.close()

    def discard(self, opened: OpenedModel) -> None:
        """Close `opened`, which is not used."""
        assert self._next is not None, "the model was opened"
        self._next.close()
        self._next = None

    def close(self) -> None:
        """Close the model that replies."""
        self.model.close()


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the first Ctrl-C raise KeyboardInterrupt, which a chat otherwise defers while a command runs."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _size(model: LocatedModel) -> str:
    """Return the size of a model's weights, or why it is unknown."""
    from quant.container import open_model

    if not model.converted:
        return model.kind
    try:
        return data_size(open_model(model.path).total_bytes)
    except QuantError:
        return "damaged"
