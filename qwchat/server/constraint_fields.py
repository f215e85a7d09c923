"""Constraints in the body of a request: `response_format`, `structured_outputs` and the older `guided_*`."""

from __future__ import annotations

import json
from typing import Any

from qwchat.constraints import Constraint
from qwchat.errors import UsageError
from qwchat.server.fields import Fields

_ANY_OBJECT = '{"type": "object"}'
_MOST_CHOICES = 4096
_GUIDED = ("choice", "regex", "json")


def read_constraint(fields: Fields) -> Constraint | None:
    """Return the constraint of a reply; None without one.

    Raises:
        ApiError: a field is wrong, there are two constraints, or one cannot be guaranteed.
    """
    found = [
        *_response_format(fields),
        *_structured(fields.nested("structured_outputs"), ""),
        *_structured(fields, "guided_"),
    ]
    if len(found) > 1:
        (_, first), (_, second) = found[0], found[1]
        raise fields.error(second, f"and {first} exclude each other: send one")
    return found[0][0] if found else None


_Found = list[tuple[Constraint, str]]
"""Constraints with the names of their fields."""


def _response_format(fields: Fields) -> _Found:
    given = fields.nested("response_format")
    if given is None:
        return []
    kind = given.text("type")
    if kind == "text":
        return []
    if kind == "json_object":
        return [(Constraint.json_schema(_ANY_OBJECT), "response_format")]
    if kind == "json_schema":
        schema = given.nested("json_schema")
        if schema is None or not schema.has("schema"):
            raise given.error("json_schema", "must be an object with a name and a schema")
        return [(_schema(schema, "schema"), "response_format")]
    raise given.error("type", "must be text, json_object or json_schema")


def _structured(fields: Fields | None, prefix: str) -> _Found:
    """Return the constraints among the fields `choice`, `regex` and `json`, each after `prefix`."""
    if fields is None:
        return []
    for unsupported in ("grammar", "structural_tag"):
        if fields.has(f"{prefix}{unsupported}"):
            raise fields.error(f"{prefix}{unsupported}", "is not supported: use a JSON schema, a regex or choices")
    found: _Found = []
    for kind in _GUIDED:
        name = f"{prefix}{kind}"
        if fields.has(name):
            found.append((_guided(fields, name, kind), fields.param(name)))
    if not prefix and fields.boolean("json_object"):
        found.append((Constraint.json_schema(_ANY_OBJECT), fields.param("json_object")))
    return found


def _guided(fields: Fields, name: str, kind: str) -> Constraint:
    if kind == "json":
        return _schema(fields, name)
    try:
        if kind == "choice":
            return Constraint.choices(fields.texts(name, _MOST_CHOICES))
        return Constraint.regex(fields.text(name) or "")
    except UsageError as error:
        raise fields.error(name, f"cannot be used: {error}") from error


def _schema(fields: Fields, name: str) -> Constraint:
    """Return the constraint of a schema: an object, `true`, or an object as a string."""
    schema: Any = fields.any(name)
    text = schema if isinstance(schema, str) else json.dumps(schema)
    try:
        return Constraint.json_schema(text)
    except UsageError as error:
        raise fields.error(name, f"cannot be used: {error}") from error
