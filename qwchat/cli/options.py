"""Options as data: one dataclass per command says what it takes, and Typer's signatures are made from it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from qwchat.chat.controls import MAX_SEED
from qwchat.errors import UsageError

Options = TypeVar("Options")


def _models(incomplete: str) -> list[tuple[str, str]]:
    from qwchat.cli import completion

    return completion.models(incomplete)


ModelArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model folder, a name in the models folder, or a checkpoint folder.",
        autocompletion=_models,
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", metavar="MODEL", help="The model (default: QWCHAT_MODEL, or mini).", autocompletion=_models
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads (default: physical cores allowed).")
]
Kv = Annotated[
    Literal["auto", "f32", "q8"],
    typer.Option("--kv", help="KV cache: exact, or 8 bits in a quarter of the memory (auto: q8 above 128 MiB)."),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No notices, no progress, no statistics.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]


def _number(flag: str, metavar: str, help_text: str) -> Any:
    return typer.Option(flag, metavar=metavar, help=help_text)


@dataclass(frozen=True, kw_only=True)
class ReplyOptions:
    """Options of the one-shot and of the chat."""

    model: ModelOption = None
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", "-p", metavar="TEXT", help="The question; - reads it from standard input."),
    ] = None
    system: Annotated[str | None, typer.Option("--system", "-s", metavar="TEXT", help="System prompt.")] = None
    file: Annotated[
        list[Path] | None,
        typer.Option("--file", "-f", metavar="PATH", help="Put the text of a file before the prompt (repeatable)."),
    ] = None
    count: Annotated[int, typer.Option("--count", "-n", metavar="N", help="Number of answers, 1 to 64.")] = 1
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", help="Longest answer (default: until the context is full)."),
    ] = None
    temp: Annotated[float | None, _number("--temp", "X", "Temperature, 0 to 5; 0 is greedy.")] = None
    top_p: Annotated[float | None, _number("--top-p", "X", "Nucleus, above 0 to 1; 1 is off.")] = None
    top_k: Annotated[int | None, _number("--top-k", "N", "Likeliest tokens to keep; 0 is off.")] = None
    min_p: Annotated[float | None, _number("--min-p", "X", "Least share of the likeliest, 0 to 1; 0 is off.")] = None
    repeat_penalty: Annotated[float | None, _number("--repeat-penalty", "X", "Above 0; 1 is off.")] = None
    presence_penalty: Annotated[float | None, _number("--presence-penalty", "X", "-2 to 2; 0 is off.")] = None
    frequency_penalty: Annotated[float | None, _number("--frequency-penalty", "X", "-2 to 2; 0 is off.")] = None
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the answer before this text (repeatable).")
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="Seed (default: chosen and shown).")] = None
    ctx: Annotated[
        int | None,
        typer.Option("--ctx", metavar="N", help="Tokens of context (default: the model's, at most 4096)."),
    ] = None
    kv: Kv = "auto"
    speculate: Annotated[
        bool,
        typer.Option(
            "--speculate/--no-speculate", help="Guess tokens from the text so far where it saves time; same text."
        ),
    ] = True
    threads: Threads = None
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda[:N]", help="Where to compute (cuda: not yet).")
    ] = "auto"
    gpu_layers: Annotated[
        int, typer.Option("--gpu-layers", metavar="N", help="Layers on the GPU (0 only, for now).")
    ] = 0
    json: Json = False
    jsonl: Annotated[bool, typer.Option("--jsonl", help="Events as JSON, one per line, as they happen.")] = False
    render: Annotated[
        Literal["plain", "markdown"] | None,
        typer.Option("--render", help="How a reply is shown (default: markdown on a terminal, plain elsewhere)."),
    ] = None
    color: Annotated[Literal["auto", "always", "never"], typer.Option("--color", help="When to use colour.")] = "auto"
    quiet: Quiet = False
    debug: Debug = False

    def given(self) -> list[str]:
        """The flags that differ from their defaults."""
        changed = [field for field in fields(self) if getattr(self, field.name) != field.default]
        return [f"--{'no-' if field.default is True else ''}{field.name.replace('_', '-')}" for field in changed]

    def sampling(self) -> dict[str, float]:
        """The sampling settings that were given, by their names in SamplingSettings."""
        named = {
            "temperature": self.temp,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p,
            "repeat_penalty": self.repeat_penalty,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
        }
        return {name: value for name, value in named.items() if value is not None}

    def check(self) -> None:
        """Refuse what cannot be done, before a model is opened. Raises UsageError that names the flag."""
        from qwchat.sampling import SamplingSettings

        SamplingSettings(**self.sampling())  # type: ignore[arg-type]  # top_k is read as an int.
        _within("--count", self.count, 1, 64)
        _within("--max-tokens", self.max_tokens, 1)
        _within("--seed", self.seed, 0, MAX_SEED)
        _within("--ctx", self.ctx, 1)
        _within("--threads", self.threads, 1)
        if self.device.partition(":")[0] == "cuda":
            raise UsageError(f"--device {self.device} is not available yet: leave --device out, or give --device cpu")
        if self.device not in ("auto", "cpu"):
            raise UsageError(f"there is no device {self.device!r}: --device takes auto or cpu")
        if self.gpu_layers != 0:
            raise UsageError(f"--gpu-layers {self.gpu_layers} is not available yet: only 0 is")
        if self.json and self.jsonl:
            raise UsageError("--json and --jsonl exclude each other: choose one")
        if self.stop is not None and "" in self.stop:
            raise UsageError("--stop needs a text that is not empty")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(ReplyOptions):
    """Options of ``chat``: those of a reply, and the model without its flag."""

    chat_model: ModelArgument = None

    def merged(self) -> ReplyOptions:
        """The same with one MODEL. Raises UsageError where two are given."""
        if self.chat_model is not None and self.model is not None:
            raise UsageError(f"two models are given, {self.chat_model} and --model {self.model}: leave one out")
        return replace(self, model=self.chat_model or self.model, chat_model=None)


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Options of ``convert``."""

    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="Folder of a Hugging Face checkpoint.")]
    destination: Annotated[
        Path | None,
        typer.Argument(metavar="DEST", help="Folder to make (default: in the models folder, named after SOURCE)."),
    ] = None
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="q4|q4-small|q8|dense", help="What to make (default: q4).")
    ] = None
    bits: Annotated[int | None, typer.Option("--bits", metavar="4|8", help="Bits of a weight.")] = None
    group_size: Annotated[
        int | None, typer.Option("--group-size", metavar="32|64|128", help="Weights that share a scale.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the size of every tensor and do nothing.")] = False
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted conversion.")] = False
    force: Annotated[bool, typer.Option("--force", help="Overwrite DEST.")] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ShowOptions:
    """Options of ``show``."""

    model: ModelArgument = None
    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class ListOptions:
    """Options of ``list``."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class DoctorOptions:
    """Options of ``doctor``."""

    json: Json = False
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Options of ``completion``."""

    shell: Annotated[
        Literal["bash", "zsh", "fish", "powershell"], typer.Argument(metavar="SHELL", help="Whose script to print.")
    ]
    debug: Debug = False


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Options of ``bench``."""

    model: ModelArgument = None
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", metavar="N", help="Tokens to read in one go.")] = 512
    new_tokens: Annotated[int, typer.Option("--new-tokens", metavar="N", help="Tokens to write.")] = 64
    depth: Annotated[int, typer.Option("--depth", metavar="N", help="Tokens in the context beforehand.")] = 0
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", help="Rounds; the median counts.")] = 3
    kv: Kv = "auto"
    speculate: Annotated[
        bool,
        typer.Option("--speculate/--no-speculate", help="Write with guesses from the text so far (default: without)."),
    ] = False
    threads: Threads = None
    json: Json = False
    quiet: Quiet = False
    debug: Debug = False

    def check(self) -> None:
        """Refuse numbers that measure nothing. Raises UsageError that names the flag."""
        _within("--prompt-tokens", self.prompt_tokens, 1)
        _within("--new-tokens", self.new_tokens, 1)
        _within("--depth", self.depth, 0)
        _within("--rounds", self.rounds, 1)
        _within("--threads", self.threads, 1)


def _within(flag: str, value: int | None, lowest: int, highest: int | None = None) -> None:
    if value is not None and (value < lowest or (highest is not None and value > highest)):
        limits = f"at least {lowest}" if highest is None else f"from {lowest} to {highest}"
        raise UsageError(f"{flag} must be {limits}, not {value}")


def as_callback(
    options: type[Options],
    run: Callable[[typer.Context, Options], int],
    extra: dict[str, tuple[Any, Any]] | None = None,
) -> Callable[..., int]:
    """A function with the signature that Typer reads: the context and one parameter per field of ``options``.

    Args:
        options: the dataclass to fill.
        run: what to call with it; its result is the exit code.
        extra: further parameters, name to (annotation, default), whose values ``run`` does not get: eager callbacks.
    """

    def callback(context: typer.Context, **values: Any) -> int:
        return run(context, options(**{name: value for name, value in values.items() if name in names}))

    hints = get_type_hints(options, include_extras=True)
    names = {field.name for field in fields(options)}  # type: ignore[arg-type]  # Always a dataclass.
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter("context", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)]
    for field in fields(options):  # type: ignore[arg-type]
        default = inspect.Parameter.empty if field.default is MISSING else field.default
        parameters.append(inspect.Parameter(field.name, keyword, default=default, annotation=hints[field.name]))
    for name, (annotation, default) in (extra or {}).items():
        parameters.append(inspect.Parameter(name, keyword, default=default, annotation=annotation))
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return callback
