"""The table of knobs: everything that has a value which flags, variables, files and the chat can set.

One entry gives a knob its flag (`--top-p`), its variable (`QWCHAT_TOP_P`), its key in configuration files
(`top-p`), its place in `/set` with completion, and its line in `qwchat config show`. Code reads it by its name:
reply knobs from `ReplySettings` (`session.controls["top-p"]`), others from `Settings` (`options.settings["ctx"]`).
"""

from __future__ import annotations

import keyword
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from quant.units import binary_size
from qwchat.errors import UsageError
from qwchat.limits import (
    DEFAULT_CONTEXT,
    EXACT_CACHE_BYTES,
    MAX_PENALTY,
    MAX_SEED,
    MAX_TEMPERATURE,
    MAX_THREADS,
)
from qwchat.settings.kinds import Choice, Kind, Number, Switch, Text, Texts, Value, Whole
from qwchat.settings.shapes import Choices, Pattern, Schema

Scope = Literal["reply", "engine", "look", "session"]
"""When a change takes effect: at the next reply; with a new engine; at once on the screen; with the next start."""


@dataclass(frozen=True)
class Knob:
    """One thing that can be set.

    Attributes:
        name: as on the command line, without dashes in front.
        kind: what values it takes.
        scope: when a change takes effect.
        help: half a line without a full stop.
        default: the built-in value; where a model has one of its own (temp, top-p ...), that holds and this is None.
        nothing: the word for None where None is a value: "random", "none", "auto".
        short: a flag of one letter.
        python: the argument of the Python functions that take it, where that has another name than the setting.
        project: whether a project file, which came from who knows where, may set it. Never for paths, models, commands.
    """

    name: str
    kind: Kind
    scope: Scope
    help: str
    default: Value = None
    nothing: str = ""
    short: str = ""
    project: bool = True
    python: str = ""

    @property
    def flag(self) -> str:
        """Its long flag."""
        return f"--{self.name}"

    def given_as(self, value: object) -> str:
        """Return its long flag as it is given for `value`: `--no-speculate` turns a switch off."""
        return f"--no-{self.name}" if value is False else self.flag

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return f"QWCHAT_{self.name.upper().replace('-', '_')}"

    @property
    def parameter(self) -> str:
        """Its name as an identifier of Python."""
        name = self.name.replace("-", "_")
        return f"{name}_" if keyword.iskeyword(name) else name

    @property
    def argument(self) -> str:
        """Its name as an argument of `qwchat.load`, `Model.chat` or `SamplingSettings`, which messages mention."""
        return self.python or self.name.replace("-", "_")

    @property
    def limits(self) -> str:
        """What it takes, in words."""
        return f"{self.kind.limits}, or {self.nothing}" if self.nothing else self.kind.limits

    @property
    def words(self) -> tuple[str, ...]:
        """Values to offer for completion."""
        return (*self.kind.choices, *([self.nothing] if self.nothing else []))

    def parse(self, text: str, where: str) -> Value:
        """The value that a person's `text` means. Raises UsageError that begins with `where`."""
        return None if self.nothing and text == self.nothing else self.kind.parse(text, where)

    def check(self, value: object, where: str) -> Value:
        """The value that a file states. Raises UsageError that begins with `where`."""
        return None if self.nothing and value == self.nothing else self.kind.check(value, where)

    def shown(self, value: Value) -> str:
        """`value` as a person would type it."""
        return (self.nothing or "-") if value is None else self.kind.shown(value)

    def stored(self, value: Value) -> Value | list[str]:
        """`value` as a TOML file states it."""
        return self.nothing if value is None else self.kind.stored(value)


KNOBS: tuple[Knob, ...] = (
    Knob("model", Text("MODEL"), "session", "The model", "mini", short="-m", project=False),
    Knob("system", Text(), "session", "System prompt", nothing="none", short="-s"),
    Knob("as", Text("NAME"), "session", "Persona: a system prompt with its settings", nothing="none"),
    Knob("temp", Number(0, MAX_TEMPERATURE), "reply", "Temperature; 0 is greedy", python="temperature"),
    Knob("top-p", Number(0, 1, above=True), "reply", "Nucleus; 1 is off"),
    Knob("top-k", Whole(0), "reply", "Likeliest tokens to keep; 0 is off"),
    Knob("min-p", Number(0, 1), "reply", "Least share of the likeliest; 0 is off"),
    Knob("repeat-penalty", Number(0, above=True), "reply", "For what was said; 1 is off"),
    Knob("presence-penalty", Number(-MAX_PENALTY, MAX_PENALTY), "reply", "For what the reply said; 0 is off"),
    Knob("frequency-penalty", Number(-MAX_PENALTY, MAX_PENALTY), "reply", "For each time it did; 0 is off"),
    Knob("seed", Whole(0, MAX_SEED), "reply", "Seed (default: chosen and shown)", nothing="random"),
    Knob("max-tokens", Whole(1), "reply", "Longest answer (default: until the context is full)", nothing="none"),
    Knob("stop", Texts(), "reply", "End the answer before this text (repeatable)", (), nothing="none"),
    Knob("choices", Choices(), "reply", "Answer with one of these texts (repeatable; \\, is a comma)", nothing="none"),
    Knob("regex", Pattern(), "reply", "Answer with a match of this, as a whole", nothing="none"),
    Knob("json-schema", Schema(), "reply", "Answer with JSON that fits (with -p, - reads it)", nothing="none"),
    Knob(
        "ctx",
        Whole(1),
        "engine",
        f"Tokens of context (default: the model's, at most {DEFAULT_CONTEXT})",
        nothing="auto",
        python="context",
    ),
    Knob(
        "kv",
        Choice(("auto", "f32", "q8")),
        "engine",
        f"KV cache: exact, or 8 bits in a quarter of the memory (auto: q8 above {binary_size(EXACT_CACHE_BYTES)})",
        "auto",
    ),
    Knob("speculate", Switch(), "reply", "Guess tokens from the text so far where it saves time; same text", True),
    Knob("loop-guard", Whole(0), "reply", "End an answer that has gone in circles for so many tokens; 0 never", 1000),
    Knob(
        "overflow",
        Choice(("ask", "error", "drop", "summarise")),
        "reply",
        "Where the conversation does not fit: ask (in a chat; an error elsewhere), or make room by the oldest turns",
        "ask",
    ),
    Knob("threads", Whole(1, MAX_THREADS), "engine", "Threads (default: physical cores allowed)", nothing="auto"),
    Knob(
        "snapshot",
        Choice(("auto", "on", "off")),
        "session",
        "Keep what was read beside a session (auto: where reading it again takes longer)",
        "auto",
        project=False,
    ),
    Knob(
        "snapshot-limit",
        Whole(0),
        "session",
        "MiB that these files may take together; the oldest go first",
        4096,
        project=False,
    ),
    Knob(
        "device",
        Text("auto|cpu|cuda[:N]", suggested=("auto", "cpu")),
        "session",
        "Where to compute (cuda: not yet)",
        "auto",
        project=False,
    ),
    Knob("gpu-layers", Whole(0), "session", "Layers on the GPU (0 only, for now)", 0, project=False),
    Knob(
        "render",
        Choice(("auto", "plain", "markdown")),
        "look",
        "How a reply is shown (auto: markdown on a terminal, plain elsewhere)",
        "auto",
    ),
    Knob("color", Choice(("auto", "always", "never")), "look", "When to use colour", "auto"),
    Knob("bell", Whole(0), "look", "Ring after replies of the chat that took so many seconds", 30, nothing="off"),
    Knob("editing-mode", Choice(("emacs", "vi")), "look", "Whose keys edit the prompt of the chat", "emacs"),
    Knob("save", Switch(), "session", "Keep the chat as a session, turn by turn", True, project=False),
    Knob("stats", Choice(("line", "json", "off")), "look", "The figures of a reply, on standard error", "line"),
    Knob("plain", Switch(), "look", "For screen readers: no colour, nothing drawn over, no line editor", False),
    # Not a project's to set: it would hide the notice that its settings hold.
    Knob("quiet", Switch(), "look", "No notices, no progress, no statistics", False, short="-q", project=False),
)

_BY_NAME = {knob.name: knob for knob in KNOBS}
_BY_ARGUMENT = {knob.argument: knob for knob in KNOBS}


def knob(name: str, *, scopes: tuple[Scope, ...] = ("reply", "engine", "look", "session")) -> Knob:
    """The knob called `name`, also with underscores, capitals or leading dashes; with the closest in the message.

    Raises UsageError where there is none of these `scopes`.
    """
    wanted = name.lower().lstrip("-").replace("_", "-")
    found = _BY_NAME.get(wanted)
    if found is not None and found.scope in scopes:
        return found
    raise UsageError(f"there is no setting {name!r}: {hint(name, scopes=scopes)}")


def with_argument(name: str) -> Knob | None:
    """Return the knob that is passed on as the argument `name`; None where the argument is no knob's."""
    return _BY_ARGUMENT.get(name)


def hint(name: str, *, scopes: tuple[Scope, ...] = ("reply", "engine", "look", "session")) -> str:
    """What may have been meant by `name`, or all that there is."""
    wanted = name.lower().lstrip("-").replace("_", "-")
    names = [known.name for known in KNOBS if known.scope in scopes]
    close = wanted if wanted in names else closest(wanted, names)
    return f"did you mean {close}?" if close else "there are " + ", ".join(names)


def closest(typed: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `typed` was probably meant to be."""
    import difflib

    return next(iter(difflib.get_close_matches(typed, list(names), n=1)), None)
