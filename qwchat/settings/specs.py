"""The table of settings that flags, variables, files and the chat can change.

One entry gives a setting its flag (`--top-p`), its environment variable (`QWCHAT_TOP_P`), its key in configuration
files (`top-p`), its place in `/set` with completion, and its line in `qwchat config show`. Code reads reply settings
from `ReplySettings` (`session.settings["top-p"]`) and the others from `Settings` (`options.settings["ctx"]`).
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quant.units import binary_size
from qwchat.errors import UsageError
from qwchat.limits import (
    ACTIVATION_BITS,
    DEFAULT_ACTIVATIONS,
    DEFAULT_CONTEXT,
    EXACT_CACHE_BYTES,
    MAX_PENALTY,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_THREADS,
)
from qwchat.settings.constraint_types import ChoiceList, JsonSchema, Regex
from qwchat.settings.endpoint import EndpointUrl
from qwchat.settings.template_variables import TemplateVariables
from qwchat.settings.value_types import (
    Boolean,
    Choice,
    DeviceName,
    Integer,
    IntegerChoice,
    Number,
    SettingValue,
    Text,
    TextList,
    ValueType,
)

Scope = Literal["reply", "engine", "display", "session"]
"""When a change takes effect: with the next reply, a new engine, at once on screen, or at the next start."""


@dataclass(frozen=True)
class SettingSpec:
    """One setting.

    Attributes:
        name: long flag without dashes.
        value_type: type of its values.
        scope: when a change takes effect.
        help: effect and neutral value, at most 60 characters, without a full stop.
        default: built-in value; None if the model has its own (such as temp and top-p).
        none_word: word for None if None is a value: "random", "none", "auto".
        short_flag: flag of one letter.
        python_argument: argument of the Python functions, if its name differs.
        project_may_set: True if a project file may set it; never for paths, models and commands.
    """

    name: str
    value_type: ValueType
    scope: Scope
    help: str
    default: SettingValue = None
    none_word: str = ""
    short_flag: str = ""
    project_may_set: bool = True
    python_argument: str = ""

    @property
    def flag(self) -> str:
        """Long flag."""
        return f"--{self.name}"

    def flag_for(self, value: object) -> str:
        """Return the long flag for `value`, such as `--no-speculate` for False."""
        return f"--no-{self.name}" if value is False else self.flag

    @property
    def variable(self) -> str:
        """Environment variable."""
        return f"QWCHAT_{self.name.upper().replace('-', '_')}"

    @property
    def parameter(self) -> str:
        """Name as a Python identifier."""
        name = self.name.replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name

    @property
    def argument(self) -> str:
        """Argument of `qwchat.load`, `Model.chat` or `SamplingParams`, which messages mention."""
        return self.python_argument or self.name.replace("-", "_")

    @property
    def accepts(self) -> str:
        """Description of the accepted values."""
        return f"{self.value_type.accepts}, or {self.none_word}" if self.none_word else self.value_type.accepts

    @property
    def completions(self) -> tuple[str, ...]:
        """Values to offer for completion."""
        return (*self.value_type.choices, *([self.none_word] if self.none_word else []))

    def parse(self, text: str, where: str) -> SettingValue:
        """Return the value of a user's `text`. Raises UsageError that begins with `where`."""
        return None if self.none_word and text == self.none_word else self.value_type.parse(text, where)

    def check(self, value: object, where: str) -> SettingValue:
        """Return the value from a file. Raises UsageError that begins with `where`."""
        return None if self.none_word and value == self.none_word else self.value_type.check(value, where)

    def to_text(self, value: SettingValue) -> str:
        """Return `value` as a user would type it."""
        return (self.none_word or "-") if value is None else self.value_type.to_text(value)

    def to_toml(self, value: SettingValue) -> SettingValue | list[str]:
        """Return `value` for a TOML file."""
        return self.none_word if value is None else self.value_type.to_toml(value)


SETTING_SPECS: tuple[SettingSpec, ...] = (
    SettingSpec(
        "model",
        Text("MODEL"),
        "session",
        "Model to use: a name, a folder or a GGUF file",
        "mini",
        short_flag="-m",
        project_may_set=False,
    ),
    SettingSpec(
        "endpoint",
        EndpointUrl(),
        "session",
        "Server that runs the model, by OpenAI's protocol (none: off)",
        none_word="none",
        project_may_set=False,
    ),
    SettingSpec(
        "endpoint-timeout",
        Integer(1),
        "session",
        "Give up after N seconds without data from the endpoint",
        300,
        project_may_set=False,
    ),
    SettingSpec(
        "endpoint-key-file",
        Text("PATH"),
        "session",
        "File with the endpoint's key, readable by you alone",
        none_word="default",
        project_may_set=False,
    ),
    SettingSpec("system", Text(), "session", "System prompt", none_word="none", short_flag="-s"),
    SettingSpec("as", Text("NAME"), "session", "Persona: a system prompt with its settings", none_word="none"),
    SettingSpec(
        "temp",
        Number(0, MAX_TEMPERATURE),
        "reply",
        "Sampling temperature (0 = greedy)",
        python_argument="temperature",
    ),
    SettingSpec("top-p", Number(0, 1, above=True), "reply", "Nucleus sampling: probability mass (1 = off)"),
    SettingSpec("top-k", Integer(0), "reply", "Sample from the N most likely tokens (0 = off)"),
    SettingSpec("min-p", Number(0, 1), "reply", "Minimum share of the top probability (0 = off)"),
    SettingSpec("repeat-penalty", Number(0, above=True), "reply", "Penalise tokens already in the context (1 = off)"),
    SettingSpec(
        "presence-penalty",
        Number(-MAX_PENALTY, MAX_PENALTY),
        "reply",
        "Penalise tokens already in the reply (0 = off)",
    ),
    SettingSpec(
        "frequency-penalty",
        Number(-MAX_PENALTY, MAX_PENALTY),
        "reply",
        "Penalise each occurrence in the reply (0 = off)",
    ),
    SettingSpec(
        "seed",
        Integer(0, MAX_SEED),
        "reply",
        "Random seed (default: a new one, shown with the reply)",
        none_word="random",
    ),
    SettingSpec(
        "max-tokens",
        Integer(1),
        "reply",
        "Stop after N tokens (default: when the context is full)",
        none_word="none",
    ),
    SettingSpec("think-budget", Integer(0), "reply", "Close a thought after N tokens (0 = no limit)", 0),
    SettingSpec("keep-thoughts", Boolean(), "reply", "Send the thoughts of earlier replies again", False),
    SettingSpec("stop", TextList(), "reply", "Stop before this text (repeatable)", (), none_word="none"),
    SettingSpec(
        "choices",
        ChoiceList(),
        "reply",
        "Reply with one of these texts (repeatable; \\, is a comma)",
        none_word="none",
    ),
    SettingSpec("regex", Regex(), "reply", "Reply with a full match of this expression", none_word="none"),
    SettingSpec(
        "json-schema",
        JsonSchema(),
        "reply",
        "Reply with JSON that fits this schema (- reads stdin)",
        none_word="none",
    ),
    SettingSpec(
        "template-var",
        TemplateVariables(),
        "reply",
        "Variable of the chat template, in JSON (repeatable)",
        none_word="none",
    ),
    SettingSpec(
        "ctx",
        Integer(1),
        "engine",
        f"Context window in tokens (default: the model's, max {DEFAULT_CONTEXT})",
        none_word="auto",
        python_argument="context",
    ),
    SettingSpec(
        "kv",
        Choice(("auto", "f32", "q8")),
        "engine",
        f"KV cache format (auto: q8 if f32 needs over {binary_size(EXACT_CACHE_BYTES)})",
        "auto",
    ),
    SettingSpec(
        "activations",
        IntegerChoice(ACTIVATION_BITS),
        "engine",
        "Bits per activation (16: more exact, slower prefill)",
        DEFAULT_ACTIVATIONS,
    ),
    SettingSpec("speculate", Boolean(), "reply", "Draft tokens from earlier text (faster, same output)", True),
    SettingSpec("loop-guard", Integer(0), "reply", "Stop after N repeated tokens (0 = off)", 1000),
    SettingSpec(
        "overflow",
        Choice(("ask", "error", "drop", "summarise")),
        "reply",
        "What to do when the context is full (ask: chat only)",
        "ask",
    ),
    SettingSpec(
        "threads",
        Integer(1, MAX_THREADS),
        "engine",
        "Number of threads (default: available physical cores)",
        none_word="auto",
    ),
    SettingSpec(
        "snapshot",
        Choice(("auto", "on", "off")),
        "session",
        "Save the KV cache with a session (auto: if that saves time)",
        "auto",
        project_may_set=False,
    ),
    SettingSpec(
        "snapshot-limit",
        Integer(0),
        "session",
        "Disk limit of saved KV caches in MiB (oldest deleted first)",
        4096,
        project_may_set=False,
    ),
    SettingSpec(
        "device",
        DeviceName(),
        "engine",
        "Device that computes (auto: a GPU if the model fits)",
        "auto",
        project_may_set=False,
    ),
    SettingSpec(
        "gpu-layers",
        Integer(0),
        "engine",
        "Last layers to run on the GPU (auto: as many as fit)",
        none_word="auto",
        project_may_set=False,
    ),
    SettingSpec(
        "render",
        Choice(("auto", "plain", "markdown")),
        "display",
        "How to show replies (auto: markdown on a terminal)",
        "auto",
    ),
    SettingSpec(
        "think",
        Choice(("fold", "show", "hide", "off")),
        "display",
        "How to show thoughts (off: ask the model not to think)",
        "fold",
    ),
    SettingSpec(
        "color", Choice(("auto", "always", "never")), "display", "When to use colour (auto: on a terminal)", "auto"
    ),
    SettingSpec(
        "bell",
        Integer(0),
        "display",
        "Ring the bell after chat replies that take N seconds",
        30,
        none_word="off",
    ),
    SettingSpec("editing-mode", Choice(("emacs", "vi")), "display", "Key bindings of the chat prompt", "emacs"),
    SettingSpec(
        "save", Boolean(), "session", "Save the chat as a session after every turn", True, project_may_set=False
    ),
    SettingSpec(
        "stats",
        Choice(("line", "json", "off")),
        "display",
        "Statistics of each reply, on standard error",
        "line",
    ),
    SettingSpec("plain", Boolean(), "display", "For screen readers: no colour, redrawing or line editor", False),
    # A project must not hide the notice that its settings are in effect.
    SettingSpec(
        "quiet",
        Boolean(),
        "display",
        "Print no notices, progress or statistics",
        False,
        short_flag="-q",
        project_may_set=False,
    ),
)

_BY_NAME = {spec.name: spec for spec in SETTING_SPECS}
_BY_ARGUMENT = {spec.argument: spec for spec in SETTING_SPECS}


def find_spec(name: str, *, scopes: tuple[Scope, ...] = ("reply", "engine", "display", "session")) -> SettingSpec:
    """Return the setting called `name`, which may have underscores, capitals or leading dashes.

    Raises:
        UsageError: there is no such setting in these `scopes`; the message names the closest one.
    """
    wanted = name.lower().lstrip("-").replace("_", "-")
    found = _BY_NAME.get(wanted)
    if found is not None and found.scope in scopes:
        return found
    raise UsageError(f"there is no setting {name!r}: {suggestion(name, scopes=scopes)}")


def spec_of_argument(name: str) -> SettingSpec | None:
    """Return the setting that is passed on as the Python argument `name`, or None."""
    return _BY_ARGUMENT.get(name)


def suggestion(name: str, *, scopes: tuple[Scope, ...] = ("reply", "engine", "display", "session")) -> str:
    """Return a hint at the setting that `name` probably means, or at all settings."""
    wanted = name.lower().lstrip("-").replace("_", "-")
    names = [spec.name for spec in SETTING_SPECS if spec.scope in scopes]
    close = wanted if wanted in names else closest_match(wanted, names)
    return f"did you mean {close}?" if close else "choose from " + ", ".join(names)


def closest_match(typed: str, names: Iterable[str]) -> str | None:
    """Return the one of `names` that `typed` was probably meant to be, or None."""
    import difflib

    return next(iter(difflib.get_close_matches(typed, list(names), n=1)), None)
