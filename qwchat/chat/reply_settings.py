"""The settings of the replies to come: sampling, seed, length, stop strings, speculation and what else there is."""

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

if TYPE_CHECKING:
    from qwchat.constraints import Constraint

# The sampling settings and their fields in SamplingParams.
_SAMPLING_FIELD_NAMES = {each.name for each in fields(SamplingParams)}
SAMPLING_FIELDS = {spec.name: spec.argument for spec in SETTING_SPECS if spec.argument in _SAMPLING_FIELD_NAMES}
REPLY_SPECS: tuple[SettingSpec, ...] = tuple(spec for spec in SETTING_SPECS if spec.scope == "reply")
REPLY_SETTING_NAMES = tuple(spec.name for spec in REPLY_SPECS)
MODEL_ORIGIN = "the model's generation_config.json"

_FIELDS = {"seed": "seed", "max-tokens": "max_tokens", "stop": "stop", "speculate": "speculate"}
_OTHERS = tuple(spec for spec in REPLY_SPECS if spec.name not in SAMPLING_FIELDS and spec.name not in _FIELDS)


@dataclass(frozen=True)
class ReplySettings:
    """Settings of the replies to come. `reply_settings["top-p"]` reads any reply setting by its name.

    Attributes:
        sampling: how tokens are chosen.
        seed: the seed of every reply; None draws a new one each time.
        max_tokens: longest reply in tokens; None lets it fill the context.
        stop: texts that end a reply.
        speculate: guess tokens from the text so far where that saves time.
        others: the other reply settings that differ from what is built in, by name.
        origins: where a value came from, by name; BUILT_IN for what is not there.
    """

    sampling: SamplingParams
    seed: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    speculate: bool = True
    others: Mapping[str, SettingValue] = field(default_factory=dict)
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    @classmethod
    def from_settings(cls, settings: Settings, defaults: SamplingParams) -> ReplySettings:
        """The reply settings of `settings`; where those say nothing of sampling, the model's `defaults` hold."""
        reply_settings = cls(
            defaults, origins={name: MODEL_ORIGIN for name in SAMPLING_FIELDS if _differs_from_default(defaults, name)}
        )
        for name in REPLY_SETTING_NAMES:
            if name in settings and name not in CONSTRAINT_SETTINGS:
                reply_settings = reply_settings.with_value(name, settings[name], settings.origin(name))
        for name in active_constraints(settings):
            reply_settings = reply_settings.with_value(name, settings[name], settings.origin(name))
        return reply_settings

    @property
    def sampled(self) -> bool:
        """Whether chance, and so the seed, plays a part."""
        return self.sampling.temperature > 0

    @property
    def constraint(self) -> Constraint | None:
        """What a reply must look like."""
        return build_constraint(self)

    def request(self, seed: int, logprobs: int = 0) -> Request:
        """Return these settings as the request for one reply."""
        return Request(
            self.sampling,
            seed,
            max_tokens=self.max_tokens,
            stop=self.stop,
            speculate=self.speculate,
            loop_guard=self["loop-guard"],
            constraint=self.constraint,
            logprobs=logprobs,
        )

    def __getitem__(self, name: str) -> Any:
        """The value of a reply setting, of the type of its kind; KeyError where there is none."""
        if name in SAMPLING_FIELDS:
            return getattr(self.sampling, SAMPLING_FIELDS[name])
        if name in _FIELDS:
            return getattr(self, _FIELDS[name])
        return self.others[name] if name in self.others else _DEFAULTS[name]

    def origin(self, name: str) -> str:
        """Where the value of `name` came from, as a person would say it."""
        return self.origins.get(name, BUILT_IN)

    def display_value(self, name: str) -> str:
        """The value of `name` as a person would type it. Raises UsageError for an unknown name."""
        spec = find_spec(name, scopes=("reply",))
        value = self[spec.name]
        return spec.to_text(None if value == () else value)

    def with_value(self, name: str, value: SettingValue, origin: str) -> ReplySettings:
        """A copy with the setting `name`, spelt as in the table, set to `value`. Raises UsageError out of range."""
        origins = {**self.origins, name: origin}
        if name in SAMPLING_FIELDS:
            changed = self.sampling.changed(**{SAMPLING_FIELDS[name]: value})  # type: ignore[arg-type]  # Its kind is a number.
            return replace(self, sampling=changed, origins=origins)
        if name in _FIELDS:
            plain = () if name == "stop" and value is None else value
            return replace(self, **{_FIELDS[name]: plain}, origins=origins)  # type: ignore[arg-type]
        replaced = CONSTRAINT_SETTINGS if name in CONSTRAINT_SETTINGS and value is not None else (name,)
        others = {other: kept for other, kept in self.others.items() if other not in replaced}
        return replace(self, others=others if value == _DEFAULTS[name] else {**others, name: value}, origins=origins)

    def changed(self, name: str, text: str, defaults: ReplySettings) -> ReplySettings:
        """A copy with `name` set to what `text` means; "default" takes the value of `defaults`.

        Raises UsageError for an unknown name and for a value that is of the wrong kind or out of range.
        """
        spec = find_spec(name, scopes=("reply",))
        if text == "default":
            return self.with_value(spec.name, defaults[spec.name], defaults.origin(spec.name))
        return self.with_value(spec.name, spec.parse(text, spec.name), f"/set {spec.name}")

    def record(self) -> dict[str, object]:
        """Every value but the seed, for JSON: the fields of SamplingParams, then the other settings."""
        others = {spec.parameter: self[spec.name] for spec in REPLY_SPECS if spec.name not in SAMPLING_FIELDS}
        del others["seed"]
        listed = {name: list(value) if isinstance(value, tuple) else value for name, value in others.items()}
        return {**asdict(self.sampling), **listed}


_DEFAULTS = {spec.name: spec.default for spec in _OTHERS}


def active_constraints(settings: Settings) -> list[str]:
    """Which of the constraints holds: the one that is set, by a flag rather than by a variable or a file.

    Raises UsageError where two of equal strength are.
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
    """Whether a model asks for something else than what is built in."""
    return bool(getattr(defaults, SAMPLING_FIELDS[name]) != getattr(type(defaults)(), SAMPLING_FIELDS[name]))
