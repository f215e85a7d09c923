"""The model that replies: on this machine or on a server, with what commands say about it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Protocol

from qwchat.chat.chat_models import OpenedModel
from qwchat.chat.formatting import activations_note
from qwchat.chat.kv_snapshots import SnapshotModel
from qwchat.cli.integrity_check import wait_until_checked, with_repair_command
from qwchat.cli.json_output import ModelInfo
from qwchat.cli.streams import Streams
from qwchat.models_folder import LocatedModel

if TYPE_CHECKING:
    from qwchat.api import Model
    from qwchat.remote.client import EndpointClient
    from qwchat.remote.model import RemoteModel

_LONGEST_STORED = 200  # characters of a model's name in a session


class ReplyModel(Protocol):
    """An open model.

    Attributes:
        opened: the model, with what the chat says about it.
    """

    opened: OpenedModel

    @property
    def thinks(self) -> bool:
        """Whether replies of this model may begin with a thought."""

    @property
    def info(self) -> ModelInfo:
        """The model in JSON output."""

    @property
    def description(self) -> str:
        """What is open: the model, where it runs, and its context window."""

    @property
    def snapshot_model(self) -> SnapshotModel | None:
        """The model as the owner of a KV cache; None if a server has the cache."""

    def wait_until_checked(self, streams: Streams) -> None:
        """Wait for the check of the model's files. Raises DamagedModelError."""

    def raise_if_damaged(self) -> None:
        """Raise DamagedModelError if the model's files are known to be damaged."""

    def with_repair_command(self) -> AbstractContextManager[None]:
        """Add the command that repairs the model to a DamagedModelError."""

    def close(self) -> None:
        """Close the model."""


class LocalReplyModel:
    """A model of this process.

    Args:
        located: where it is.
        model: the model.
    """

    def __init__(self, located: LocatedModel, model: Model) -> None:
        folder = model.folder
        self.located, self._model = located, model
        self.opened = OpenedModel(model, located.name, folder.fingerprint, model.defaults, folder.bits_per_weight)

    @property
    def thinks(self) -> bool:
        """Whether replies of this model may begin with a thought."""
        return self._model.thinks

    @property
    def info(self) -> ModelInfo:
        """The model in JSON output."""
        return ModelInfo.of(self.located, self._model)

    @property
    def description(self) -> str:
        """The model, the GPU if it uses one, its activations if they are not the default, and its context window."""
        model, placement = self._model, self._model.placement
        device = f" on {placement.description}" if placement.gpu is not None else ""
        bits = f"{model.folder.bits_per_weight:.2f} bits per weight{activations_note(model.activations)}"
        return f"{self.located.name} at {bits}{device}, context {model.context:,} tokens"

    @property
    def snapshot_model(self) -> SnapshotModel | None:
        """The model as the owner of a KV cache."""
        return self._model

    def wait_until_checked(self, streams: Streams) -> None:
        """Wait for the check of the model's files. Raises DamagedModelError."""
        wait_until_checked(self._model, streams)

    def raise_if_damaged(self) -> None:
        """Raise DamagedModelError if the model's files are known to be damaged."""
        self._model.integrity.raise_if_damaged()

    def with_repair_command(self) -> AbstractContextManager[None]:
        """Add the command that repairs the model to a DamagedModelError."""
        return with_repair_command(self._model.folder)

    def close(self) -> None:
        """Close the model."""
        self._model.close()


class RemoteReplyModel:
    """A model on a server.

    Args:
        model: the model.
        client: the client of its server.
        fingerprint: what identifies the model on its server.
    """

    snapshot_model: SnapshotModel | None = None

    def __init__(self, model: RemoteModel, client: EndpointClient, fingerprint: str) -> None:
        self._model, self.client = model, client
        self.opened = OpenedModel(model, f"{model.name} at {model.host}"[:_LONGEST_STORED], fingerprint, None, None)

    @property
    def thinks(self) -> bool:
        """Whether replies of this model may begin with a thought, which only the server knows."""
        return True

    @property
    def info(self) -> ModelInfo:
        """The model in JSON output."""
        return ModelInfo(self._model.name, endpoint=self.client.endpoint.url)

    @property
    def description(self) -> str:
        """The model, its server, and its context window."""
        assumed = "" if self._model.reports_context else " (assumed)"
        return f"{self.opened.name}, context {self._model.context:,} tokens{assumed}"

    def wait_until_checked(self, streams: Streams) -> None:
        """Do nothing: the files are on the server."""

    def raise_if_damaged(self) -> None:
        """Do nothing: the files are on the server."""

    def with_repair_command(self) -> AbstractContextManager[None]:
        """Change no error: the files are on the server."""
        return nullcontext()

    def close(self) -> None:
        """Close the model."""
        self._model.close()
