"""The interface through which a chat switches to another model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qwchat.chat.chat_model import ChatModel
from qwchat.request import SamplingParams
from qwchat.settings.resolve import Settings


@dataclass(frozen=True)
class OpenedModel:
    """A model that can reply from now on.

    Attributes:
        model: the model.
        name: its name.
        fingerprint: fingerprint of its weights, or what identifies it on its server.
        defaults: sampling parameters that it recommends; None if a server has them.
        bits_per_weight: mean bits per weight; None if a server has the weights.
    """

    model: ChatModel
    name: str
    fingerprint: str
    defaults: SamplingParams | None
    bits_per_weight: float | None


@dataclass(frozen=True)
class ModelChoice:
    """A model on this machine or on a server.

    Attributes:
        name: its name.
        size: size of its weights as text, or where it is.
        current: whether it replies now.
    """

    name: str
    size: str
    current: bool


class ChatModels(Protocol):
    """The models that a chat can switch to; implemented by `qwchat.cli.loaded_models.LoadedModels`."""

    def choices(self) -> Sequence[ModelChoice]:
        """Return the models of the server, if the chat has one, and those on this machine, by name."""

    def open(self, name: str, settings: Settings) -> OpenedModel | None:
        """Open a model beside the current one; None if it is the current one.

        `name` may also be the URL of a server, with the name of a model there after a space.

        Raises:
            QwchatError: it cannot be opened. The current model is unchanged then.
        """

    def keep(self, opened: OpenedModel) -> None:
        """Close the model that replied before `opened`."""

    def discard(self, opened: OpenedModel) -> None:
        """Close `opened`, which is not used."""
