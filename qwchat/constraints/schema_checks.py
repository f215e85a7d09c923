"""Check JSON schemas before llguidance sees them, and refuse what it would ignore or cannot guarantee."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from qwchat.constraints.llguidance_adapter import TOO_COMPLEX, grammar_error, schema_grammar
from qwchat.errors import UsageError

DEPTH_LIMIT = 60  # nested objects and arrays; llguidance accepts 128 and recurses
_MAX_PARTS_TRIED = 200  # subschemas to compile in search of the one that fails

_SCHEMAS = {"items", "additionalItems", "additionalProperties"}  # a schema or a list of schemas
_LISTS = {"allOf", "anyOf", "oneOf", "prefixItems"}
_NAMED = {"properties", "patternProperties", "$defs", "definitions"}
_ASSERTIONS = {
    *("type", "const", "enum", "$ref", "format", "pattern", "minLength", "maxLength", "multipleOf", "required"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
    *("minItems", "maxItems", "minProperties", "maxProperties"),
}
_ANNOTATIONS = {  # these do not affect validity
    *("$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "title"),
    *("description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("contentEncoding", "contentMediaType", "contentSchema"),
}
_SUPPORTED = _SCHEMAS | _LISTS | _NAMED | _ASSERTIONS | _ANNOTATIONS
_UNSUPPORTED = {
    *("not", "if", "then", "else", "contains", "minContains", "maxContains", "uniqueItems", "propertyNames"),
    *("dependentRequired", "dependentSchemas", "dependencies", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$recursiveRef"),
}
SchemaPath = tuple[str, ...]


def parse_schema(text: str) -> dict[str, Any]:
    """Return the schema in `text`.

    Raises:
        UsageError: the text is not a JSON schema, or uses keywords that cannot be guaranteed.
    """
    try:
        schema = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_parse_float,
            parse_int=_parse_integer,
            object_pairs_hook=_unique_keys,
        )
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise UsageError(f"the JSON schema is not valid JSON ({error.msg} at {where}): correct it") from error
    except ValueError as error:
        raise UsageError(f"the JSON schema cannot be read ({error}): correct it") from error
    except RecursionError:
        schema = None
    if schema is None or _depth(schema) > DEPTH_LIMIT:
        raise UsageError(
            f"the JSON schema is nested more than {DEPTH_LIMIT} levels deep: use $ref and $defs, or simplify it"
        )
    if schema is True:
        return {}
    if not isinstance(schema, dict):
        raise UsageError('the JSON schema must be an object, as in {"type": "object"}')
    known: dict[SchemaPath, Any] = {}
    bases: dict[SchemaPath, SchemaPath] = {}
    for path, part, base in _subschemas(schema, (), ()):
        known[path], bases[path] = part, base
        if isinstance(part, dict):
            _check_keywords(path, part)
            if "$ref" in part and path and "$id" in part and "/20" not in str(schema.get("$schema")):
                # Before draft 2019-09, all keywords beside a $ref were ignored.
                raise UsageError(
                    f"the JSON schema has $id beside $ref at {_pointer(path)}, which drafts interpret differently: "
                    "name the draft in $schema"
                )
            _check_number_of_properties(path, part)
    _check_references(known, bases)
    return schema


def explain_error(schema: dict[str, Any], failure: str) -> str:
    """Return llguidance's message about `schema` as one line, with the smallest subschema that causes it."""
    if failure == TOO_COMPLEX:
        return f"the JSON schema cannot be used: {failure}"
    parts = [(path, part) for path, part, _ in _subschemas(schema, (), ()) if isinstance(part, dict) and path]
    where: SchemaPath = ()
    for path, part in sorted(parts, key=lambda found: -len(found[0]))[:_MAX_PARTS_TRIED]:
        if '"$ref"' not in json.dumps(part) and grammar_error(schema_grammar(part)) == failure:
            where = path
            break
    lines = failure.splitlines()
    reason = next((line.partition("error: ")[2] for line in lines if line.startswith("error: ")), lines[0])
    if reason.startswith("oneOf constraints are not supported"):
        reason = "oneOf is supported only if its parts exclude each other: use anyOf"
    return f"the JSON schema cannot be used, at {_pointer(where)}: {reason}"


def _subschemas(schema: Any, path: SchemaPath, base: SchemaPath) -> Iterator[tuple[SchemaPath, Any, SchemaPath]]:
    """Yield the path of every subschema, the subschema, and the path that its references start from."""
    identity = schema.get("$id", schema.get("id")) if isinstance(schema, dict) else None
    if isinstance(identity, str) and not identity.startswith("#"):
        base = path
    yield path, schema, base
    if not isinstance(schema, dict):
        return
    for name, value in schema.items():
        inner: dict[SchemaPath, Any] = {}
        if name in _SCHEMAS and not isinstance(value, list):
            inner[*path, name] = value
        elif name in _LISTS | _SCHEMAS and isinstance(value, list):
            inner = {(*path, name, str(number)): part for number, part in enumerate(value)}
        elif name in _NAMED and isinstance(value, dict):
            inner = {(*path, name, key): part for key, part in value.items()}
        for place, part in inner.items():
            yield from _subschemas(part, place, base)


def _check_keywords(path: SchemaPath, part: dict[str, Any]) -> None:
    for name in part:
        if name in _SUPPORTED or (name.startswith("x-") and name != "x-guidance"):
            continue
        if name in _UNSUPPORTED:
            raise UsageError(f"the JSON schema uses {name} at {_pointer(path)}, which cannot be guaranteed: remove it")
        close = difflib.get_close_matches(name, sorted(_SUPPORTED | _UNSUPPORTED), n=1)
        hint = f"did you mean {close[0]}?" if close else "remove it, or name it x-…"
        raise UsageError(f"the JSON schema has an unknown keyword {name!r} at {_pointer(path)}: {hint}")


def _check_number_of_properties(path: SchemaPath, part: dict[str, Any]) -> None:
    """Refuse minProperties beyond the required names: unlisted names may repeat, so that fewer properties remain."""
    least, required = part.get("minProperties"), part.get("required")
    named = len(set(map(str, required))) if isinstance(required, list) else 0
    if isinstance(least, int | float) and least > max(1, named):
        raise UsageError(
            f"the JSON schema has minProperties {least:g} at {_pointer(path)}, which cannot be guaranteed: "
            "name the properties in required"
        )


def _check_references(known: dict[SchemaPath, Any], bases: dict[SchemaPath, SchemaPath]) -> None:
    for path, part in known.items():
        target = part.get("$ref") if isinstance(part, dict) else None
        if not isinstance(target, str) or not (target == "#" or target.startswith("#/")):
            continue
        names = [unquote(name).replace("~1", "/").replace("~0", "~") for name in target.split("/")[1:]]
        if (*bases[path], *names) not in known:
            raise UsageError(
                f"the JSON schema refers to {target} at {_pointer(path)}, which does not exist: correct the reference"
            )


def _pointer(path: SchemaPath) -> str:
    return "/".join(("#", *(name.replace("~", "~0").replace("/", "~1") for name in path)))


def _depth(value: Any) -> int:
    """Return the nesting depth of objects and arrays, without recursion."""
    depth, level = 0, [value]
    while level := [inner for inner in level if isinstance(inner, dict | list)]:
        depth += 1
        level = [part for inner in level for part in (inner.values() if isinstance(inner, dict) else inner)]
    return depth


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return found


def _parse_float(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"{digits[:20]} is too large for a number")
    return number


def _parse_integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 20 else _parse_float(digits)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not valid JSON")
