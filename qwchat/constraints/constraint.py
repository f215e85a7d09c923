"""Constraints as the user states them, checked before a model is opened."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from quant.units import binary_size
from quant.wording import ArgumentMessage, SuggestedArgument
from qwchat.constraints import schema_checks
from qwchat.constraints.llguidance_adapter import fits, grammar_error, regex_grammar, schema_grammar
from qwchat.errors import UsageError
from qwchat.limits import MAX_CONSTRAINT_BYTES

ConstraintKind = Literal["choices", "regex", "json-schema"]
_SEPARATOR = re.compile(r"(?<!\\),")
_REGEX_SPECIAL = re.compile(r"[][\\.^$*+?{}()|/&~#-]")


@dataclass(frozen=True)
class Constraint:
    """Constraint on a whole reply, created by `choices`, `regex` or `json_schema`.

    Attributes:
        kind: type of the constraint, which is also the name of its option.
        source: the constraint as given.
        grammar: the constraint as an llguidance grammar.
    """

    kind: ConstraintKind
    source: str
    grammar: str = field(repr=False)

    @classmethod
    def choices(cls, texts: Iterable[str]) -> Constraint:
        """Constrain the reply to one of `texts`.

        Raises:
            UsageError: there are no texts, a text is empty, or they are too large.
        """
        wanted = list(dict.fromkeys(texts))
        if not wanted or not all(wanted):
            example = SuggestedArgument("choices", "yes,no")
            raise UsageError(ArgumentMessage("choices must not be empty: give some texts, as in ", example))
        _check_size("the choices", ",".join(wanted))
        pattern = "|".join(_REGEX_SPECIAL.sub(r"\\\g<0>", text) for text in wanted)
        source = ",".join(text.replace(",", r"\,") for text in wanted)
        return cls._compile("choices", source, regex_grammar(pattern))

    @classmethod
    def parse_choices(cls, given: Iterable[str]) -> Constraint:
        r"""Constrain the reply to choices as typed: separated by commas, with `\,` for a comma and spaces trimmed."""
        return cls.choices(part.replace(r"\,", ",") for part in split_choices(given))

    @classmethod
    def regex(cls, pattern: str) -> Constraint:
        """Constrain the reply to a match of `pattern` from the first to the last character.

        The syntax is that of Rust's regex crate, without look-around and back-references.

        Raises:
            UsageError: the pattern is invalid, too large, or nothing can match it.
        """
        _check_size("the regular expression", pattern)
        return cls._compile("regex", pattern, regex_grammar(pattern))

    @classmethod
    def json_schema(cls, text: str) -> Constraint:
        """Constrain the reply to JSON that fits the schema in `text`.

        Raises:
            UsageError: the text is not a schema, uses keywords that cannot be guaranteed, is too large, or nothing can
                fit it. The message says where.
        """
        _check_size("the JSON schema", text)
        schema = schema_checks.parse_schema(text)
        grammar = schema_grammar(schema)
        failure = grammar_error(grammar)
        if failure is not None:
            raise UsageError(schema_checks.explain_error(schema, failure))
        return cls("json-schema", text, grammar)

    def fits(self, text: str) -> bool:
        """Return whether `text` meets the constraint."""
        return fits(self.grammar, text)

    @classmethod
    def _compile(cls, kind: ConstraintKind, source: str, grammar: str) -> Constraint:
        failure = grammar_error(grammar)
        if failure is not None:
            what = "these choices cannot be used" if kind == "choices" else "the regular expression cannot be used"
            raise UsageError(f"{what}: {_error_reason(failure)}")
        return cls(kind, source, grammar)


def split_choices(given: Iterable[str]) -> tuple[str, ...]:
    """Split typed choices at commas that do not follow a backslash."""
    return tuple(part.strip() for text in given for part in _SEPARATOR.split(text))


def _check_size(what: str, text: str) -> None:
    if len(text.encode("utf-8", "surrogatepass")) > MAX_CONSTRAINT_BYTES:
        raise UsageError(f"{what} is larger than the limit of {binary_size(MAX_CONSTRAINT_BYTES)}: shorten it")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise UsageError(f"{what} contains a lone surrogate, which is not a character: remove it")


def _error_reason(failure: str) -> str:
    """Return llguidance's message about a regular expression as one line, with the position if it has one."""
    lines = failure.splitlines()
    caret = next((line for line in lines if line.strip() and set(line.strip()) == {"^"}), None)
    error = next((line.partition("error: ")[2] for line in lines if line.startswith("error: ")), None)
    if error is None:
        error = lines[0].partition("(in regex): ")[2] or lines[0]
        return error.replace("lookarounds not supported yet; ", "look-around is not supported: ")
    return error if caret is None else f"{error} (character {caret.index('^') - 3})"
