"""The page of the command line, from the Typer application."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docs.generator.markdown import code, escaped, sentence, table
from docs.generator.markdown import page as whole_page
from qwchat.cli import app
from qwchat.settings.specs import SETTING_SPECS

_INTRODUCTION = """\
`qwchat --help` and `qwchat COMMAND --help` show the same in the terminal. An option that is a
[setting](settings.md) can also be an environment variable or a line of a configuration file.

`MODEL` is the path of a model folder, the name of a model in the models folder, or the path of a checkpoint folder,
which is converted once. Without `MODEL`, the setting [`model`](settings.md#model) decides."""

_GROUPS = {
    "run": "This run",
    "reply": "The reply",
    "engine": "The engine",
    "display": "The display",
    "session": "Model, session and device",
}
_SHARED = "Takes `MODEL` and the options of `qwchat` above{but}."


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each command below `command` with the words that call it."""
    for name, inner in command.commands.items():
        yield (*path, name), inner
        if hasattr(inner, "commands"):
            yield from _commands(inner, (*path, name))


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _spelled(param: Any) -> str:
    """Return an option or argument with its placeholder: `-m`, `--model MODEL`."""
    metavar = param.metavar or ""
    if _is_argument(param):
        return code(metavar)
    names = sorted(param.opts, key=len) + list(param.secondary_opts)
    names[-1] += f" {metavar}" if metavar and not param.is_flag else ""
    return ", ".join(map(code, names))


def _effect(param: Any) -> str:
    """Return the help text, with the default where the text does not state it."""
    text = escaped(param.help or "")
    shown = param.default
    if shown in (None, False, (), []) or callable(shown) or "default" in text:
        return text
    return f"{text} (default: {code(str(shown))})"


def _rows(params: list[Any]) -> list[tuple[str, str]]:
    return [(_spelled(param), _effect(param)) for param in params]


def _visible(command: Any) -> list[Any]:
    return [param for param in command.params if "--help" not in param.opts]


def _grouped(params: list[Any]) -> list[str]:
    """Return one table per group of options, with its heading."""
    scopes = {known.flag: known.scope for known in SETTING_SPECS}
    parts = []
    for group, title in _GROUPS.items():
        chosen = [param for param in params if group == next((scopes[o] for o in param.opts if o in scopes), "run")]
        parts += [f"### {title}", table(["Option", "Effect"], _rows(chosen))]
    return parts


def _usage(path: tuple[str, ...], command: Any) -> str:
    words = [*path]
    for param in filter(_is_argument, command.params):
        name = (param.metavar or "").strip("[]")
        words.append((name if param.required else f"[{name}]") + ("..." if param.nargs == -1 else ""))
    words += ["[OPTIONS]"] if any(not _is_argument(param) for param in _visible(command)) else []
    words += ["[COMMAND]"] if hasattr(command, "commands") else []
    return "```text\n" + " ".join(words) + "\n```"


def _section(path: tuple[str, ...], command: Any, shared: dict[str, Any]) -> list[str]:
    """Return the parts of one command: heading, usage, effect, options."""
    params = _visible(command)
    parts = ["#" * len(path) + f" {' '.join(path)}", _usage(path, command), sentence(command.help)]
    own = [param for param in params if _is_argument(param) or _spelled(param) not in shared]
    if len(params) - len(own) > len(shared) // 2:
        missing = [name for name in shared if name not in {_spelled(param) for param in params}]
        parts.append(_SHARED.format(but=f", except {', '.join(missing)}" if missing else ""))
        params = [param for param in own if "MODEL" not in (param.metavar or "")]
    if params:
        parts.append(table(["Option", "Effect"], _rows(params)))
    if command.epilog:
        lines = command.epilog.removeprefix("\b\n").splitlines()
        pairs = [line.strip().partition("  ") for line in lines[1:]]
        rows = [(code(name), escaped(rest)) for name, _, rest in pairs]
        parts.append(table([lines[0].rstrip(":").removesuffix("s"), "Content"], rows))
    return parts


def page() -> str:
    """Return the page."""
    root: Any = app.make_command_line(completing=False)
    params = [param for param in _visible(root) if "--version" not in param.opts]
    examples = "```text\n" + "\n".join(line[2:] for line in root.help.split("\b\n")[1].rstrip().splitlines()) + "\n```"
    parts = [_INTRODUCTION, "## qwchat", sentence(root.help.split("\n")[0]), examples, *_grouped(params)]
    shared = {_spelled(param): param for param in params}
    for path, command in _commands(root, ("qwchat",)):
        parts += _section(path, command, shared)
    return whole_page("Command line", *parts)
