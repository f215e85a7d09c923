"""Options as data: one dataclass per command, from which `qwchat.cli.typer_callbacks` makes signatures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Literal

import typer

from quant.presets import DEFAULT_PRESET, PRESETS
from qwchat.cli import completion
from qwchat.errors import UsageError
from qwchat.limits import MAX_LOGPROBS
from qwchat.settings.personas import parse_assignments
from qwchat.settings.resolve import FlagValue, Settings, resolve
from qwchat.settings.specs import find_spec


def complete_presets(incomplete: str) -> list[tuple[str, str]]:
    """Return the presets that begin with a text, for completion in a shell."""
    return [(name, preset.summary) for name, preset in PRESETS.items() if name.startswith(incomplete)]


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help=find_spec("model").help,
        autocompletion=completion.models,
    ),
]
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="|".join(PRESETS),
        help=f"Formats of the tensors (default: {DEFAULT_PRESET})",
        autocompletion=complete_presets,
    ),
]
Threads = Annotated[int | None, typer.Option("--threads", metavar="N", help=find_spec("threads").help)]
Kv = Annotated[
    Literal["auto", "f32", "q8"] | None,
    typer.Option("--kv", help=find_spec("kv").help),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help=find_spec("quiet").help)]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error")]


class Flags(dict[str, FlagValue]):
    """Settings from the command line, by name. A field of this type accepts the flags of all settings."""


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """Options of `qwchat -p` and of the chat: all settings, and the options of one run."""

    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="Prompt to answer (- reads standard input)"),
    ] = None
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            metavar="PATH",
            help="Attach files: PATH, 'src/*.py' or PATH:10-80 (repeatable)",
        ),
    ] = None
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Number of replies [1 to 64]")] = 1
    continue_: Annotated[bool, typer.Option("--continue", "-c", help="Continue the latest session")] = False
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="[SESSION]",
            help="Continue a session by name, ID or title (no value: choose)",
            autocompletion=completion.sessions,
        ),
    ] = None
    session: Annotated[
        str | None,
        typer.Option(
            "--session",
            metavar="NAME",
            help="Continue the session of this name, or start it",
            autocompletion=completion.sessions,
        ),
    ] = None
    flags: Flags = field(default_factory=Flags)
    var: Annotated[
        list[str] | None,
        typer.Option("--var", metavar="NAME=VALUE", help="Set a variable of the persona (repeatable)"),
    ] = None
    no_config: Annotated[bool, typer.Option("--no-config", help="Ignore configuration files")] = False
    extract: Annotated[
        bool, typer.Option("--extract", "-x", help="Print only the first fenced code block of the reply")
    ] = False
    extract_last: Annotated[
        bool, typer.Option("--extract-last", help="Print only the last fenced code block of the reply")
    ] = False
    json: Json = False
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Print events as JSON lines while they happen")] = False
    logprobs: Annotated[
        int | None,
        typer.Option(
            "--logprobs",
            metavar="N",
            help=f"Add log-probabilities and the N top tokens [1 to {MAX_LOGPROBS}]",
        ),
    ] = None
    debug: Debug = False

    def with_piped_schema(self, read: Callable[[], str]) -> ReplyOptions:
        """Return the options with the schema from `read`, if `--json-schema -` is given.

        Raises UsageError if it is not a schema.
        """
        if self.flags.get("json-schema") != "-":
            return self
        if self.prompt == "-" or "-" in (self.file or ()):
            raise UsageError("--json-schema - reads standard input, and so do -p - and -f -: choose one")
        text = read()
        if not text.lstrip().startswith("{"):
            raise UsageError("standard input is not a JSON schema, which begins with {: pipe one in")
        return replace(self, flags=Flags(self.flags, **{"json-schema": text}))

    @cached_property
    def settings(self) -> Settings:
        """Settings from flags, variables and files. Raises UsageError that names the source."""
        return resolve(self.flags, use_files=not self.no_config, variables=parse_assignments(self.var or []))

    @property
    def without_persona(self) -> Settings:
        """The same settings without the persona."""
        if self.settings["as"] is None:
            return self.settings
        return resolve(Flags(self.flags, **{"as": "none"}), use_files=not self.no_config)

    def given_flags(self) -> list[str]:
        """Return the flags that were given."""
        field_names = [each for each in fields(self) if each.type != "Flags"]
        changed = [each.name for each in field_names if getattr(self, each.name) != each.default]
        specs = [find_spec(name).flag_for(raw) for name, raw in self.flags.items()]
        return specs + [f"--{name.rstrip('_').replace('_', '-')}" for name in changed]

    def check(self) -> None:
        """Check the options before a model is opened. Raises UsageError that names the flag."""
        check_range("--count", self.count, 1, 64)
        if self.settings["device"] == "cpu" and self.settings["gpu-layers"]:
            raise UsageError(f"--gpu-layers {self.settings['gpu-layers']} needs a GPU: use --device auto or cuda")
        self._check_constraint()
        if self.json and self.jsonl:
            raise UsageError("--json and --jsonl exclude each other: choose one")
        if self.extract and self.extract_last:
            raise UsageError("--extract and --extract-last exclude each other: choose one")
        check_range("--logprobs", self.logprobs, 1, MAX_LOGPROBS)
        if self.logprobs is not None and not (self.json or self.jsonl):
            raise UsageError("--logprobs needs --json or --jsonl")

    def _check_constraint(self) -> None:
        from qwchat.chat.reply_settings import active_constraints

        active_constraints(self.settings)


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ReplyOptions):
    """Options of `chat`: those of a reply, and MODEL as an argument."""

    chat_model: ModelArgument = None

    def with_model_argument(self) -> ReplyOptions:
        """Return the options with MODEL as a setting. Raises UsageError if two models are given."""
        if self.chat_model is None:
            return self
        if "model" in self.flags:
            raise UsageError(f"two models are given, {self.chat_model} and --model {self.flags['model']}: remove one")
        return replace(self, flags=Flags(self.flags, model=self.chat_model), chat_model=None)


def check_range(flag: str, value: int | None, lowest: int, highest: int | None = None) -> None:
    """Raise UsageError that names the flag unless a number is within its limits; None is."""
    if value is not None and (value < lowest or (highest is not None and value > highest)):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise UsageError(f"{flag} must be {limits}, not {value}")
