"""The open model of a chat, and the models that it can switch to."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from quant.errors import QuantError
from quant.units import data_size
from quant.wording import ArgumentMessage
from qwchat import models_folder
from qwchat.chat.chat_models import ModelChoice, OpenedModel
from qwchat.chat.kv_snapshots import KVSnapshots
from qwchat.cli.dependencies import Dependencies
from qwchat.cli.ensure_model import ensure_model
from qwchat.cli.startup import load_located
from qwchat.cli.streams import Streams
from qwchat.errors import ModelError, NotEnoughMemoryError, UsageError
from qwchat.models_folder import LocatedModel
from qwchat.settings.resolve import Settings

if TYPE_CHECKING:
    from qwchat.api import Model


class LoadedModels:
    """The model that replies in a chat, and one that is about to. Closing it closes them.

    Args:
        located: where the first model is.
        model: the first model.
        dependencies: opens models.
        streams: where the progress of a conversion is shown.

    Attributes:
        model: the model that replies.
        snapshots: saves its KV cache; None until the session is connected.
    """

    def __init__(self, located: LocatedModel, model: Model, dependencies: Dependencies, streams: Streams) -> None:
        self.model, self._located = model, located
        self.snapshots: KVSnapshots | None = None
        self._next: tuple[LocatedModel, Model] | None = None
        self._dependencies, self._streams = dependencies, streams

    def choices(self) -> Sequence[ModelChoice]:
        """Return the current model and those that `qwchat list` shows, by name."""
        found = {model.name: model for model in models_folder.available()}
        current = found.get(self._located.name)
        if current is None or current.path != self._located.path:
            found[str(self._located.path)] = self._located
        return [
            ModelChoice(name, _size(model), model.path == self._located.path) for name, model in sorted(found.items())
        ]

    def open(self, name: str, settings: Settings) -> OpenedModel | None:
        """Open a model beside the current one, converting a checkpoint first; None if it is the current one.

        Raises:
            QwchatError: it cannot be opened, or Ctrl-C was pressed.
        """
        stay = f"; {self._located.name} stays the model of this chat"
        try:
            with _interruptible():
                threads = settings["threads"]
                located = ensure_model(name, self._dependencies, self._streams, threads, may_pull=False)
                if located.path == self._located.path:
                    return None
                model = load_located(located, settings, self._dependencies, self._streams)
        except KeyboardInterrupt:
            raise UsageError(f"stopped opening {name}{stay}") from None
        except QuantError as error:
            raise ModelError(ArgumentMessage(error)) from error
        except (NotEnoughMemoryError, MemoryError) as error:
            leave = f"; or leave the chat and start qwchat -c -m {name}, which opens one model alone"
            raise NotEnoughMemoryError(ArgumentMessage(error if error.args else "out of memory", leave)) from error
        self._next = located, model
        folder = model.folder
        return OpenedModel(model, located.name, folder.fingerprint, model.defaults, folder.bits_per_weight)

    def keep(self, opened: OpenedModel) -> None:
        """Close the model that replied before `opened`."""
        assert self._next is not None, "the model was opened"
        before = self.model
        (self._located, self.model), self._next = self._next, None
        if self.snapshots is not None:
            self.snapshots.switch_model(self.model)
        before.close()

    def discard(self, opened: OpenedModel) -> None:
        """Close `opened`, which is not used."""
        assert self._next is not None, "the model was opened"
        self._next[1].close()
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
