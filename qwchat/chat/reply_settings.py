"""The settings of the next replies: sampling, seed, length, stop strings, speculation and so on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from qwchat.chat.active_constraint import CONSTRAINT_SETTINGS, build_constraint
from qwchat.errors import UsageError
from qwchat.request import Request, SamplingParams
from qwchat.settings.resolve import BUILT_IN, Settings
from qwchat.settings.specs import SETTING_SPECS, SettingSpec, find_spec
from qwchat.settings.value_types import SettingValue
from qwchat.text.template.variables import parse_variables

if TYPE_CHECKING:
    from qwchat.constraints import Constraint

# Sampling settings by name, with their fields in SamplingParams.
_SAMPLING_FIELD_NAMES = {each.name for each in fields(SamplingParams)}
SAMPLING_FIELDS = {spec.name: spec.argument for spec in SETTING_SPECS if spec.argument in _SAMPLING_FIELD_NAMES}
REPLY_SPECS: tuple[SettingSpec, ...] = tuple(spec for spec in SETTING_SPECS if spec.scope == "reply")
REPLY_SETTING_NAMES = tuple(spec.name for spec in REPLY_SPECS)
MODEL_ORIGIN = "the model's generation_config.json"
SERVER_DEFAULT = "the server's default"

_FIELDS = {"seed": "seed", "max-tokens": "max_tokens", "stop": "stop", "speculate": "speculate"}
_OTHERS = tuple(spec for spec in REPLY_SPECS if spec.name not in SAMPLING_FIELDS and spec.name not in _FIELDS)


@dataclass(frozen=True)
class ReplySettings:
    """Settings of the next replies. `reply_settings["top-p"]` reads any reply setting by its name.

    Attributes:
        sampling: how tokens are sampled; parameters that are `unset` do not count.
        seed: the seed of every reply; None draws a new one each time.
        max_tokens: length limit of a reply in tokens; None is limited by the context alone.
        stop: texts that end a reply.
        speculate: use draft tokens where that saves time.
        others: other reply settings that differ from their defaults, by name.
        origins: where a value comes from, by name; BUILT_IN for names that are missing.
        server_decides: True if a server chooses the sampling parameters that are not set.
    """

    sampling: SamplingParams
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True
    others: Mapping[str, SettingValue] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)
    server_decides: bool = False

    @classmethod
    def from_settings(cls, settings: Settings, defaults: SamplingParams | None) -> ReplySettings:
        """Return the reply settings of `settings`, with the model's `defaults` for sampling settings not set there.

        `defaults` of None: a server has them.
        """
        reply_settings = cls(SamplingParams()).with_model_defaults(defaults)
        for name in REPLY_SETTING_NAMES:
            if name in settings and name not in CONSTRAINT_SETTINGS:
                reply_settings = reply_settings.with_value(name, settings[name], settings.origin(name))
        for name in active_constraints(settings):
            reply_settings = reply_settings.with_value(name, settings[name], settings.origin(name))
        return reply_settings

    @property
    def unset(self) -> frozenset[str]:
        """Fields of the sampling parameters that a server chooses."""
        given = (BUILT_IN, MODEL_ORIGIN)
        unset = (argument for name, argument in SAMPLING_FIELDS.items() if self.origin(name) in given)
        return frozenset(unset) if self.server_decides else frozenset()

    @property
    def sampled(self) -> bool:
        """Whether tokens are sampled randomly, so that the seed matters; a server may do so unless told otherwise."""
        return self.sampling.temperature > 0 or "temperature" in self.unset

    @property
    def constraint(self) -> Constraint | None:
        """The constraint that a reply must meet; None if no constraint is set."""
        return build_constraint(self)

    @property
    def template_variables(self) -> dict[str, Any]:
        """The variables of the chat template that are set, by name."""
        return parse_variables(self["template-var"] or ())

    def request(self, seed: int, logprobs: int = 0) -> Request:
        """Return the request for one reply with these settings."""
        return Request(
            self.sampling,
            seed,
            max_tokens=self.max_tokens,
            stop=self.stop,
            speculate=self.speculate,
            loop_guard=self["loop-guard"],
            constraint=self.constraint,
            logprobs=logprobs,
            think_budget=self["think-budget"],
            unset=self.unset,
        )

    def __getitem__(self, name: str) -> Any:
        """Return the value of a reply setting, or raise KeyError."""
        if name in SAMPLING_FIELDS:
            return getattr(self.sampling, SAMPLING_FIELDS[name])
        if name in _FIELDS:
            return getattr(self, _FIELDS[name])
        return self.others[name] if name in self.others else _DEFAULTS[name]

    def origin(self, name: str) -> str:
        """Return where the value of `name` comes from, for display."""
        return self.origins.get(name, BUILT_IN)

    def display_value(self, name: str) -> str:
        """Return the value of `name` as a user would type it. Raises UsageError for an unknown name."""
        spec = find_spec(name, scopes=("reply",))
        if spec.argument in self.unset:
            return SERVER_DEFAULT
        value = self[spec.name]
        return spec.to_text(None if value == () else value)

    def with_value(self, name: str, value: SettingValue, origin: str) -> ReplySettings:
        """Return a copy with the setting `name`, spelt as in the table, set to `value`.

        Raises:
            UsageError: the value is out of range.
        """
        origins = {**self.origins, name: origin}
        if name in SAMPLING_FIELDS:
            changed = self.sampling.changed(**{SAMPLING_FIELDS[name]: value})  # type: ignore[arg-type]  # Sampling values are numbers.
            return replace(self, sampling=changed, origins=origins)
        if name in _FIELDS:
            plain = () if name == "stop" and value is None else value
            return replace(self, **{_FIELDS[name]: plain}, origins=origins)  # type: ignore[arg-type]
        replaced = CONSTRAINT_SETTINGS if name in CONSTRAINT_SETTINGS and value is not None else (name,)
        others = {other: kept for other, kept in self.others.items() if other not in replaced}
        return replace(self, others=others if value == _DEFAULTS[name] else {**others, name: value}, origins=origins)

    def with_model_defaults(self, defaults: SamplingParams | None) -> ReplySettings:
        """Return a copy for a model with these defaults, which replace those of the model before.

        `defaults` of None: a server has them.
        """
        sampling, origins, server_decides = self.sampling, dict(self.origins), defaults is None
        defaults = defaults or SamplingParams()
        for name, argument in SAMPLING_FIELDS.items():
            if self.origin(name) in (BUILT_IN, MODEL_ORIGIN):
                sampling = replace(sampling, **{argument: getattr(defaults, argument)})
                origins[name] = MODEL_ORIGIN if _differs_from_default(defaults, name) else BUILT_IN
        return replace(self, sampling=sampling, origins=origins, server_decides=server_decides)

    def changed(self, name: str, text: str, defaults: ReplySettings) -> ReplySettings:
        """Return a copy with one setting changed.

        Args:
            name: of the setting, in any spelling.
            text: the value as typed; "default" takes that of `defaults`.
            defaults: the settings to go back to.

        Raises:
            UsageError: the name is unknown, or the value has the wrong type or is out of range.
        """
        spec = find_spec(name, scopes=("reply",))
        if text == "default":
            return self.with_value(spec.name, defaults[spec.name], defaults.origin(spec.name))
        return self.with_value(spec.name, spec.parse(text, spec.name), f"/set {spec.name}")

    def record(self) -> dict[str, object]:
        """Return every value but the seed, for JSON: the fields of SamplingParams, then the other settings.

        Parameters that a server chooses are None.
        """
        others = {spec.parameter: self[spec.name] for spec in REPLY_SPECS if spec.name not in SAMPLING_FIELDS}
        del others["seed"]
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in others.items()}
        sampling = {name: None if name in self.unset else value for name, value in asdict(self.sampling).items()}
        return {**sampling, **listed}


_DEFAULTS = {spec.name: spec.default for spec in _OTHERS}


def active_constraints(settings: Settings) -> list[str]:
    """Return the name of the constraint in effect, as a list; flags take precedence over variables and files.

    Raises:
        UsageError: two constraints of the same precedence are set.
    """
    given = [name for name in CONSTRAINT_SETTINGS if name in settings and settings[name] is not None]
    flags = [name for name in given if settings.origin(name).startswith("--")]
    selected = flags or given
    if len(selected) > 1:
        one, other = (
            f"{name} ({settings.origin(name)})" if not flags else settings.origin(name) for name in selected[:2]
        )
        raise UsageError(f"{one} and {other} exclude each other: choose one")
    return selected


def _differs_from_default(defaults: SamplingParams, name: str) -> bool:
    """Return whether the model recommends another value than the built-in one."""
    return bool(getattr(defaults, SAMPLING_FIELDS[name]) != getattr(type(defaults)(), SAMPLING_FIELDS[name]))
