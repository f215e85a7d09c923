"""The commands: their names and help, and the modules with their options and code, which are imported when used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quant.presets import IMPORTED, IMPORTED_PRESET, PRESETS

_SUMMARIES = {name: preset.summary for name, preset in PRESETS.items()} | {IMPORTED_PRESET: IMPORTED.summary}
_WIDTH = max(map(len, _SUMMARIES))
_PRESETS = "\b\nPresets:\n" + "\n".join(f"  {name:<{_WIDTH}}  {summary}" for name, summary in _SUMMARIES.items())


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        name: its word on the command line.
        options: dataclass of its options, as "module:Class".
        task: module whose function `run` runs it, or "module:function". Empty for `completion`, which the module that
            makes the commands runs itself.
        help: one line.
        epilog: text after its options.
    """

    name: str
    options: str
    task: str
    help: str
    epilog: str | None = None

    def options_class(self) -> type[Any]:
        """Import and return the dataclass of its options."""
        found: type[Any] = _imported(self.options)
        return found

    def function(self) -> Callable[..., int]:
        """Import and return the function that runs it."""
        found: Callable[..., int] = _imported(self.task)
        return found


def _imported(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name or "run")


@dataclass(frozen=True)
class Group:
    """A command with commands of its own. Without one of them it runs the first."""

    name: str
    help: str
    commands: tuple[Command, ...]


COMMANDS = (
    Command(
        "chat",
        "qwchat.cli.options:ChatOptions",
        "qwchat.cli.chat",
        "Chat with a model (piped text becomes the first message)",
    ),
    Command(
        "convert",
        "qwchat.cli.convert_options:ConvertOptions",
        "qwchat.cli.convert",
        "Quantise a Hugging Face checkpoint",
        _PRESETS,
    ),
    Command(
        "export",
        "qwchat.cli.model_options:ExportOptions",
        "qwchat.cli.export_model",
        "Export a model for vLLM, llama.cpp or transformers",
    ),
    Command(
        "pull",
        "qwchat.cli.model_options:PullOptions",
        "qwchat.cli.pull",
        "Download and convert a model, or list the catalogue",
    ),
    Command(
        "estimate",
        "qwchat.cli.model_options:EstimateOptions",
        "qwchat.cli.estimate",
        "Show the memory that a model needs",
    ),
    Command(
        "show",
        "qwchat.cli.model_options:ShowOptions",
        "qwchat.cli.show",
        "Show the formats, shapes, sizes and files of a model",
    ),
    Command(
        "verify",
        "qwchat.cli.model_options:VerifyOptions",
        "qwchat.cli.verify",
        "Check the files of a model against their checksums",
    ),
    Command(
        "rm", "qwchat.cli.model_options:RemoveOptions", "qwchat.cli.remove", "Remove models from the models folder"
    ),
    Command(
        "list", "qwchat.cli.model_options:ListOptions", "qwchat.cli.list_models", "List the models on this machine"
    ),
    Command(
        "bench",
        "qwchat.cli.model_options:BenchOptions",
        "qwchat.cli.bench",
        "Measure prefill and decode against the machine's limits",
    ),
    Command(
        "perplexity",
        "qwchat.cli.evaluation_options:PerplexityOptions",
        "qwchat.cli.perplexity",
        "Measure how well a model predicts text, or its KL divergence",
    ),
    Command(
        "calibrate",
        "qwchat.cli.calibrate_options:CalibrateOptions",
        "qwchat.cli.calibrate",
        "Collect statistics of a model for `convert --calibration`",
    ),
    Command(
        "eval",
        "qwchat.cli.eval_options:EvalOptions",
        "qwchat.cli.eval_model",
        "Measure how well a model answers multiple-choice questions",
    ),
    Command(
        "sensitivity",
        "qwchat.cli.sensitivity_options:SensitivityOptions",
        "qwchat.cli.sensitivity",
        "Measure which matrices of a model need more bits",
    ),
    Command(
        "serve",
        "qwchat.cli.serve_options:ServeOptions",
        "qwchat.cli.serve",
        "Serve a model over HTTP (OpenAI's protocol)",
    ),
    Command(
        "doctor",
        "qwchat.cli.machine_options:DoctorOptions",
        "qwchat.cli.doctor",
        "Check the machine and the installation for problems",
    ),
    Command(
        "completion",
        "qwchat.cli.machine_options:CompletionOptions",
        "",
        "Print the completion script of a shell",
    ),
)

_SESSION_COMMANDS = (
    Command(
        "list",
        "qwchat.cli.session_options:SessionsListOptions",
        "qwchat.cli.sessions:list_all",
        "List the sessions, latest first",
    ),
    Command(
        "show",
        "qwchat.cli.session_options:SessionsShowOptions",
        "qwchat.cli.sessions:show",
        "Show the details and messages of a session",
    ),
    Command(
        "grep",
        "qwchat.cli.session_options:SessionsGrepOptions",
        "qwchat.cli.sessions:grep",
        "Search the messages (exit code 1: no match)",
    ),
    Command(
        "rm",
        "qwchat.cli.session_options:SessionsRemoveOptions",
        "qwchat.cli.sessions:remove",
        "Remove sessions after confirmation",
    ),
    Command(
        "export",
        "qwchat.cli.session_options:SessionsExportOptions",
        "qwchat.cli.sessions:export",
        "Export a session as md, html or json",
    ),
)

_CONFIG_COMMANDS = (
    Command(
        "show",
        "qwchat.cli.config_options:ConfigShowOptions",
        "qwchat.cli.config:show",
        "Show every setting, its value and its origin",
    ),
    Command(
        "get", "qwchat.cli.config_options:ConfigGetOptions", "qwchat.cli.config:get", "Print the value of one setting"
    ),
    Command(
        "set",
        "qwchat.cli.config_options:ConfigSetOptions",
        "qwchat.cli.config:change",
        "Write a setting to your configuration file",
    ),
    Command(
        "edit",
        "qwchat.cli.config_options:ConfigFileOptions",
        "qwchat.cli.config:edit",
        "Open your configuration file in $EDITOR",
    ),
    Command(
        "check",
        "qwchat.cli.config_options:ConfigCheckOptions",
        "qwchat.cli.config:check",
        "Check files and variables for mistakes",
    ),
    Command(
        "path",
        "qwchat.cli.config_options:ConfigFileOptions",
        "qwchat.cli.config:path",
        "Print the path of your configuration file",
    ),
)

GROUPS = (
    Group("sessions", "List, show, search, remove and export saved sessions", _SESSION_COMMANDS),
    Group("config", "Show, change and check settings", _CONFIG_COMMANDS),
)
