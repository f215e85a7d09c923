"""Settings in a chat: their values, where the values come from, and the effect of a change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qwchat.chat.chat_model import ChatModel
from qwchat.chat.formatting import evaluation_note
from qwchat.chat.session import Session
from qwchat.errors import NotEnoughMemoryError, UsageError
from qwchat.request import Prompt
from qwchat.settings.resolve import Settings, SourcedValue
from qwchat.settings.specs import SETTING_SPECS, Scope, SettingSpec, find_spec

_SCOPES: tuple[Scope, ...] = ("reply", "engine", "display")
_COMMANDS_INSTEAD = {
    "system": "use /system TEXT to change the system prompt",
    "as": "use /as NAME to apply a persona",
    "model": "use /model NAME to switch to another model",
    "endpoint": "use /model URL to switch to a model on a server",
}


class ChatSettings:
    """The settings of a chat, for `/set`.

    Args:
        session: the conversation, which holds the reply settings.
        settings: values of the other settings when the chat starts, with their origins.
        model: the model, if engine settings can be changed.
        on_display: function that applies a display setting, by setting name.

    """

    def __init__(
        self,
        session: Session,
        settings: Settings | None = None,
        model: ChatModel | None = None,
        on_display: Mapping[str, Callable[[Any], None]] | None = None,
    ) -> None:
        self._session = session
        self._model = model
        self._on_display = on_display or {}
        self._start = settings or Settings()
        self._given = dict(self._start.given)

    @property
    def specs(self) -> tuple[SettingSpec, ...]:
        """The settings that can be changed in this chat."""
        return tuple(spec for spec in SETTING_SPECS if self._can_change(spec))

    def _can_change(self, spec: SettingSpec) -> bool:
        if spec.scope == "engine":
            return self._model is not None and (spec.name == "ctx" or not self._model.host)
        return spec.scope == "reply" or spec.name in self._on_display

    @property
    def current(self) -> Settings:
        """The settings with the changes made in this chat; reply settings are those at its start."""
        return Settings(self._given)

    def switch_model(self, model: ChatModel) -> None:
        """Apply engine settings to another model from now on; it was opened with the current ones."""
        self._model = model

    def find(self, name: str) -> SettingSpec:
        """Return the setting called `name`. Raises UsageError unless it can be changed in a chat."""
        found = find_spec(name, scopes=(*_SCOPES, "session"))
        if self._model is not None and self._model.host and found.scope == "engine" and found.name != "ctx":
            raise UsageError(f"the model runs on {self._model.host}, where {found.name} cannot be changed")
        if found not in self.specs:
            by_flag = f"{found.name} cannot be changed in a chat: start qwchat with {found.flag}"
            raise UsageError(_COMMANDS_INSTEAD.get(found.name, by_flag))
        return found

    def display_value(self, spec: SettingSpec) -> str:
        """Return the value of a setting as a user would type it; "auto" with what it resolves to."""
        if spec.scope == "reply":
            return self._session.reply_settings.display_value(spec.name)
        value = self.current[spec.name]
        if value in (None, "auto") and spec.scope == "engine" and self._model is not None:
            return f"auto ({getattr(self._model, spec.argument)})"
        return spec.to_text(value)

    def origin(self, spec: SettingSpec) -> str:
        """Return where the value of a setting comes from."""
        if spec.scope == "reply":
            return self._session.reply_settings.origin(spec.name)
        return self.current.origin(spec.name)

    def change(self, name: str, text: str) -> str:
        """Change a setting.

        Args:
            name: of the setting.
            text: the new value; "default" restores the value from the start of the chat.

        Returns:
            The new value and what the change costs, as one line.

        Raises:
            UsageError: the setting or the value is invalid. Nothing has changed then, as with any error of the engine.
        """
        spec = self.find(name)
        if spec.scope == "reply":
            session = self._session
            session.reply_settings = session.reply_settings.changed(spec.name, text, session.defaults)
            return f"{spec.name} {self.display_value(spec)}"
        given = dict(self._given)
        if text == "default":
            given.pop(spec.name, None)
            if spec.name in self._start:
                given[spec.name] = self._start.given[spec.name]
        else:
            given[spec.name] = SourcedValue(spec.parse(text, spec.name), f"/set {spec.name}")
        notice = self._apply(spec, Settings(given))
        self._given = given
        return f"{spec.name} {self.display_value(spec)}{notice}"

    def _apply(self, spec: SettingSpec, settings: Settings) -> str:
        if spec.scope == "display":
            self._on_display[spec.name](settings[spec.name])
            return ""
        model = self._model
        assert model is not None, "engine settings can only be changed with a model"
        messages = self._session.messages if self._session.turns else []
        prompt = self._session.render(messages) if messages else Prompt(())
        cached = model.cached(prompt)
        self._reconfigure(model, settings, keep=spec.name in ("ctx", "threads") and bool(messages))
        if not messages:
            return ""
        # The engine may have lost more, but after /clear or /undo those tokens belong to no current conversation.
        return evaluation_note(prompt.tokens, cached - model.cached(prompt), model.context)

    @staticmethod
    def _reconfigure(model: ChatModel, settings: Settings, *, keep: bool) -> None:
        """Apply engine settings to the model.

        `keep`: resolve "auto" to the current cache format, which keeps the cached tokens, as long as memory allows.
        """
        options = {spec.argument: settings[spec.name] for spec in SETTING_SPECS if spec.scope == "engine"}
        if keep and options["kv"] == "auto" and model.device == "cpu":
            try:
                model.reconfigure(**options | {"kv": model.kv})
            except NotEnoughMemoryError:
                model.reconfigure(**options)
        else:
            model.reconfigure(**options)
