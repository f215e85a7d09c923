"""Personas in a chat: one is put on, changed for another, taken off, or made of what is set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwchat.chat.reply_settings import MODEL_ORIGIN, REPLY_SPECS, ReplySettings
from qwchat.chat.session import Session
from qwchat.errors import UsageError
from qwchat.settings import personas
from qwchat.settings.resolve import BUILT_IN
from qwchat.settings.value_types import SettingValue


class ActivePersona:
    """The personas of a chat.

    Args:
        session: the conversation.
        base: the reply settings as they were without a persona.
        system: the system prompt without a persona.
        active: the persona that the chat began with.
        persona_system: its system prompt.
    """

    def __init__(
        self,
        session: Session,
        base: ReplySettings | None = None,
        system: str | None = None,
        active: str | None = None,
        persona_system: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._session = session
        self._base = base or session.reply_settings
        self._base_system = system if active else session.system
        self._system = persona_system  # What the persona said, to see whether it still holds.
        self._environment = environment
        self.active = active

    def names(self) -> list[str]:
        """The personas there are."""
        return personas.names(self._environment)

    def descriptions(self) -> list[tuple[str, str]]:
        """The personas with their descriptions; a damaged one with what is wrong."""
        found = []
        for name in self.names():
            try:
                text = personas.read(name, self._environment).description
            except UsageError as error:
                text = str(error)
            found.append((name, text))
        return found

    def variables(self, name: str) -> list[str]:
        """The variables of a persona; none where it cannot be read."""
        try:
            return personas.read(name, self._environment).variables
        except UsageError:
            return []

    @property
    def folder(self) -> Path:
        """Where they are kept."""
        return personas.folder(self._environment)

    def apply(self, name: str, variables: Sequence[str]) -> dict[str, SettingValue]:
        """Take a persona's settings and system prompt over; what it sets.

        Raises UsageError where there is no such persona or a variable is missing; nothing has changed then.
        """
        values = personas.read(name, self._environment).fill_variables(personas.parse_assignments(list(variables)))
        self.remove()
        reply_settings = self._session.reply_settings
        for key, value in values.items():
            if key != "system":
                reply_settings = reply_settings.with_value(key, value, _origin(name))
        self._session.reply_settings = reply_settings
        if "system" in values:
            system = values["system"]
            self._session.system = self._system = None if system is None else str(system)
        self.active = name
        return values

    def remove(self) -> None:
        """Give back what the persona set and nobody changed since."""
        if self.active is None:
            return
        reply_settings = self._session.reply_settings
        for spec in REPLY_SPECS:
            if reply_settings.origin(spec.name) == _origin(self.active):
                reply_settings = reply_settings.with_value(
                    spec.name, self._base[spec.name], self._base.origin(spec.name)
                )
        self._session.reply_settings = reply_settings
        if self._system is not None and self._session.system == self._system:
            self._session.system = self._base_system
        self.active = self._system = None

    def save(self, name: str, *, overwrite: bool) -> Path:
        """Make a persona of the system prompt and of every reply setting but the seed that somebody set; its file.

        Raises UsageError where there is nothing to keep, where one of that name is there and `overwrite` is False,
        and where it cannot be written.
        """
        reply_settings = self._session.reply_settings
        values: dict[str, SettingValue] = {} if self._session.system is None else {"system": self._session.system}
        for spec in REPLY_SPECS:
            if spec.name != "seed" and reply_settings.origin(spec.name) not in (BUILT_IN, MODEL_ORIGIN):
                values[spec.name] = reply_settings[spec.name]
        if not values:
            raise UsageError("there is nothing to keep: give a system prompt with /system or settings with /set first")
        path = personas.path_of(name, self._environment)
        if path.exists() and not overwrite:
            raise UsageError(f"{path} exists already: choose another name")
        return personas.write(name, values, self._environment)


def _origin(name: str) -> str:
    return f"persona {name}"
