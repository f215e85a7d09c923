"""Every setting as the chat sees it: its value, where that came from, and what a change does and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qwchat.chat.chat_model import ChatModel
from qwchat.chat.formatting import token_count
from qwchat.chat.session import Session
from qwchat.errors import NotEnoughMemoryError, UsageError
from qwchat.request import Prompt
from qwchat.settings.resolve import Settings, SourcedValue
from qwchat.settings.specs import SETTING_SPECS, Scope, SettingSpec, find_spec

_SCOPES: tuple[Scope, ...] = ("reply", "engine", "display")
_ELSEWHERE = {"system": "/system TEXT sets it", "as": "/as NAME takes one"}


class ChatSettings:
    """The settings of a chat.

    Args:
        session: the conversation, which holds the reply settings.
        settings: where the values of the other settings came from when the chat began.
        machine: the model, where engine settings can be changed.
        look: what carries out a change of a look setting, by its name.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings | None = None,
        machine: ChatModel | None = None,
        look: Mapping[str, Callable[[Any], None]] | None = None,
    ) -> None:
        self._session = session
        self._machine = machine
        self._look = look or {}
        self._start = settings or Settings()
        self._given = dict(self._start.given)
        self.specs: tuple[SettingSpec, ...] = tuple(known for known in SETTING_SPECS if self._can_change(known))

    def _can_change(self, known: SettingSpec) -> bool:
        if known.scope == "engine":
            return self._machine is not None
        return known.scope == "reply" or known.name in self._look

    def known(self, name: str) -> SettingSpec:
        """Return the setting called `name`. Raises UsageError unless it can be changed in a chat."""
        found = find_spec(name, scopes=(*_SCOPES, "session"))
        if found not in self.specs:
            how = _ELSEWHERE.get(found.name, f"start with {found.flag}")
            raise UsageError(f"{found.name} cannot be set in a chat: {how}")
        return found

    def shown(self, known: SettingSpec) -> str:
        """The value of a setting as a person would type it, with what "auto" comes to."""
        if known.scope == "reply":
            return self._session.controls.shown(known.name)
        value = self._settings[known.name]
        chosen = {"ctx": "context", "threads": "threads", "kv": "kv"}.get(known.name)
        if value in (None, "auto") and chosen is not None and self._machine is not None:
            return f"auto ({getattr(self._machine, chosen)})"
        return known.to_text(value)

    def origin(self, known: SettingSpec) -> str:
        """Where the value of a setting came from."""
        if known.scope == "reply":
            return self._session.controls.origin(known.name)
        return self._settings.origin(known.name)

    def change(self, name: str, text: str) -> str:
        """Set a setting to what `text` means, "default" as it was at the start; what to tell about it.

        Raises UsageError, and what a new engine raises; nothing has changed then.
        """
        known = self.known(name)
        if known.scope == "reply":
            session = self._session
            session.controls = session.controls.changed(known.name, text, session.defaults)
            return f"{known.name} {self.shown(known)}"
        given = dict(self._given)
        if text == "default":
            given.pop(known.name, None)
            if known.name in self._start:
                given[known.name] = self._start.given[known.name]
        else:
            given[known.name] = SourcedValue(known.parse(text, known.name), f"/set {known.name}")
        remark = self._carry_out(known, Settings(given))
        self._given = given
        return f"{known.name} {self.shown(known)}{remark}"

    @property
    def _settings(self) -> Settings:
        return Settings(self._given)

    def _carry_out(self, known: SettingSpec, settings: Settings) -> str:
        if known.scope == "display":
            self._look[known.name](settings[known.name])
            return ""
        machine = self._machine
        assert machine is not None, "an engine setting is known only where there is a machine"
        messages = self._session.messages if self._session.turns else []
        prompt = machine.prompt(messages) if messages else Prompt(())
        cached = machine.cached(prompt)
        self._rebuild(machine, settings, keep=known.name != "kv" and bool(messages))
        if not messages:
            return ""
        if prompt.tokens > machine.context:
            return f"; the conversation has {prompt.tokens:,} tokens and does not fit in {machine.context:,}"
        # Not what the engine has lost: after /clear or /undo that is of a conversation that does not go on.
        again = cached - machine.cached(prompt)
        return f"; {token_count(again)} will be read again" if again > 0 else ""

    @staticmethod
    def _rebuild(machine: ChatModel, settings: Settings, *, keep: bool) -> None:
        """Give the machine these settings.

        `keep`: "auto" stays with the kind of cache that there is, of which what was read can be taken over, as long
        as the memory lasts.
        """
        threads, context, kv = settings["threads"], settings["ctx"], settings["kv"]
        if keep and kv == "auto":
            try:
                machine.reconfigure(threads=threads, context=context, kv=machine.kv)
            except NotEnoughMemoryError:
                machine.reconfigure(threads=threads, context=context, kv=kv)
        else:
            machine.reconfigure(threads=threads, context=context, kv=kv)
