"""The page of exit codes, from the enumeration and the errors that are mapped to it."""

from __future__ import annotations

from collections.abc import Iterator

from docs.generator.markdown import code, table
from docs.generator.markdown import page as whole_page
from quant.errors import QuantError
from qwchat.cli.exit_codes import ExitCode, exit_code_of
from qwchat.errors import QwchatError

_MEANINGS = {
    ExitCode.OK: "The command did what it was asked to do.",
    ExitCode.RUNTIME: "Any other failure, a model that `--max-kl` refuses, and `sessions grep` without a match.",
    ExitCode.USAGE: "A wrong option, argument or setting, or arguments that contradict each other.",
    ExitCode.MODEL: "The model, its tokenizer or its template is missing, unsupported or damaged.",
    ExitCode.PROMPT_TOO_LONG: "The prompt does not fit in the context window.",
    ExitCode.MEMORY: "There is not enough memory for the model, the KV cache or the work space.",
    ExitCode.CONSTRAINT: "The reply does not meet its constraint, or `-x` found no code block.",
    ExitCode.INTERRUPTED: "Ctrl-C (SIGINT).",
    ExitCode.BROKEN_PIPE: "The output was closed: a broken pipe (SIGPIPE) or a closed standard output.",
}

_INTRODUCTION = """\
Every command ends with one of these codes. An expected failure prints one line on standard error that says what
happened, where, and what to do; `--debug` adds the traceback."""

_ERRORS = """\
The Python functions raise these exceptions, and the command line ends with the code beside them. All of them derive
from `qwchat.errors.QwchatError` or `quant.errors.QuantError`."""


def _classes(base: type[Exception]) -> Iterator[type[Exception]]:
    for inner in base.__subclasses__():
        if inner.__module__.split(".")[0] in ("quant", "qwchat") and not inner.__name__.startswith("_"):
            yield inner
        yield from _classes(inner)


def page() -> str:
    """Return the page."""
    rows = [(str(int(each)), _MEANINGS[each]) for each in ExitCode]
    classes = {each for base in (QwchatError, QuantError) for each in _classes(base)}
    names = {f"{each.__module__}.{each.__qualname__}": exit_code_of(each.__new__(each)) for each in classes}
    errors = [
        (code(name), str(int(number)))
        for name, number in sorted(names.items())
        if name.split(".")[:2] in (["qwchat", "errors"], ["quant", "errors"])
    ]
    return whole_page(
        "Exit codes",
        _INTRODUCTION,
        table(["Code", "Meaning"], rows),
        "## Exceptions",
        _ERRORS,
        table(["Exception", "Code"], errors),
    )
