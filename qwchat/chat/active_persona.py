"""The persona of a chat: apply, replace or remove one, or save the current settings as one."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from qwchat.chat.reply_settings import MODEL_ORIGIN, REPLY_SPECS, ReplySettings
from qwchat.chat.session import Session
from qwchat.errors import UsageError
from qwchat.request import SamplingParams
from qwchat.settings import personas
from qwchat.settings.resolve import BUILT_IN
from qwchat.settings.value_types import SettingValue


class ActivePersona:
    """The persona that a chat uses, if any.

    Args:
        session: the conversation whose settings and system prompt the persona changes.
        base: the reply settings without a persona; those of `session` if not given.
        system: the system prompt without a persona.
        active: name of the persona that the chat starts with; None if it starts without one.
        persona_system: system prompt of that persona.
        environment: variables that say where personas are stored.

    Attributes:
        active: name of the active persona, or None.
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
        self._system = persona_system  # To see whether the user has changed it since.
        self._environment = environment
        self.active = active

    def names(self) -> list[str]:
        """Return the names of all personas."""
        return personas.names(self._environment)

    def descriptions(self) -> list[tuple[str, str]]:
        """Return each persona with its description; for one that cannot be read, with the error."""
        found = []
        for name in self.names():
            try:
                text = personas.read(name, self._environment).description
            except UsageError as error:
                text = str(error)
            found.append((name, text))
        return found

    def variables(self, name: str) -> list[str]:
        """Return the variables of a persona; an empty list if it cannot be read."""
        try:
            return personas.read(name, self._environment).variables
        except UsageError:
            return []

    @property
    def folder(self) -> Path:
        """The folder that holds the personas."""
        return personas.folder(self._environment)

    def apply(self, name: str, variables: Sequence[str]) -> dict[str, SettingValue]:
        """Apply the settings and the system prompt of a persona, in place of the active one.

        Args:
            name: the persona.
            variables: its variables as `NAME=VALUE`.

        Returns:
            The values that it sets, by setting name; `system` is the system prompt.

        Raises:
            UsageError: there is no such persona, or a variable is missing. Nothing has changed then.
        """
        values = personas.read(name, self._environment).fill_variables(personas.parse_assignments(list(variables)))
        self.remove()
        reply_settings = self._session.reply_settings
        for key, value in values.items():
            if key not in personas.SESSION_NAMES:
                reply_settings = reply_settings.with_value(key, value, _origin(name))
        self._session.reply_settings = reply_settings
        if "system" in values:
            system = values["system"]
            self._session.system = self._system = None if system is None else str(system)
        self.active = name
        return values

    def remove(self) -> None:
        """Restore what the persona set, except what the user has changed since."""
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

    def switch_model(self, defaults: SamplingParams | None) -> None:
        """Restore the defaults of another model when the persona is removed."""
        self._base = self._base.with_model_defaults(defaults)

    def save(self, name: str, *, overwrite: bool) -> Path:
        """Save the system prompt and all changed reply settings, except the seed, as a persona.

        Args:
            name: of the new persona.
            overwrite: replace an existing persona of that name.

        Returns:
            The path of its file.

        Raises:
            UsageError: nothing was changed, the persona exists and `overwrite` is False, or the file cannot be written.
        """
        reply_settings = self._session.reply_settings
        values: dict[str, SettingValue] = {} if self._session.system is None else {"system": self._session.system}
        for spec in REPLY_SPECS:
            if spec.name != "seed" and reply_settings.origin(spec.name) not in (BUILT_IN, MODEL_ORIGIN):
                values[spec.name] = reply_settings[spec.name]
        if not values:
            raise UsageError("there is nothing to save: set a system prompt with /system or settings with /set first")
        path = personas.path_of(name, self._environment)
        if path.exists() and not overwrite:
            raise UsageError(f"{path} already exists: choose another name")
        return personas.write(name, values, self._environment)


def _origin(name: str) -> str:
    return f"persona {name}"
