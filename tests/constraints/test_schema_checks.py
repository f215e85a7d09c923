"""JSON schemas: which are accepted, and which are refused instead of being ignored."""

from __future__ import annotations

import json

import pytest

from qwchat.constraints import Constraint
from qwchat.errors import UsageError


def fits(schema: object, text: str) -> bool:
    return Constraint.json_schema(json.dumps(schema)).fits(text)


def test_json_stands_on_one_line() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}, "required": ["a", "b"]}
    assert fits(schema, '{"a":1,"b":[null, "x"]}')
    assert fits(schema, '{"a": 1, "b": {"c": true}}')
    assert not fits(schema, '{"a":  1,"b":0}')
    assert not fits(schema, '{"a":1,\n"b":0}')
    assert not fits(schema, '{"a":1}')
    assert not fits(schema, '{"a":1,"b":0} ')


def test_the_schema_true_allows_any_json() -> None:
    assert Constraint.json_schema("true").fits('[{"a": -1.5e3}, "x\\n", null]')


REFUSED = {
    "false": 'the JSON schema must be an object, as in {"type": "object"}',
    "[]": 'the JSON schema must be an object, as in {"type": "object"}',
    '{"type"}': "the JSON schema is not valid JSON (Expecting ':' delimiter at line 1, column 8): correct it",
    '{"minimum": NaN}': "the JSON schema cannot be read (NaN is not valid JSON): correct it",
    '{"minimum": 1e999}': "the JSON schema cannot be read (1e999 is too large for a number): correct it",
    '{"type":"null","type":"string"}': (
        "the JSON schema cannot be read (the key 'type' occurs twice in one object): correct it"
    ),
    '{"properties":{"a":{"requierd":["x"]}}}': (
        "the JSON schema has an unknown keyword 'requierd' at #/properties/a: did you mean required?"
    ),
    '{"nullable":true}': "the JSON schema has an unknown keyword 'nullable' at #: remove it, or name it x-…",
    '{"x-guidance":{}}': "the JSON schema has an unknown keyword 'x-guidance' at #: remove it, or name it x-…",
    '{"minProperties":2}': (
        "the JSON schema has minProperties 2 at #, which cannot be guaranteed: name the properties in required"
    ),
    '{"$ref":"#/$defs/x"}': "the JSON schema refers to #/$defs/x at #, which does not exist: correct the reference",
    '{"allOf":[{"$ref":"#/default"}],"default":{"not":{}}}': (
        "the JSON schema refers to #/default at #/allOf/0, which does not exist: correct the reference"
    ),
    '{"properties":{"a":{"$ref":"#","$id":"x"}}}': (
        "the JSON schema has $id beside $ref at #/properties/a, which drafts interpret differently: "
        "name the draft in $schema"
    ),
    '{"$ref":"http://example.org/a"}': (
        "the JSON schema cannot be used, at #: Resource 'http://example.org/a' is not present in a registry and "
        "retrieving it failed: Default retriever does not fetch resources"
    ),
    '{"properties":{"a/b":{"type":"strin"}}}': (
        "the JSON schema cannot be used, at #/properties/a~1b: Invalid type: strin"
    ),
    '{"anyOf":[{"pattern":"(?=a)"}]}': (
        "the JSON schema cannot be used, at #/anyOf/0: look-around, including look-ahead and look-behind, "
        "is not supported"
    ),
    '{"items":{"format":"colour"}}': "the JSON schema cannot be used, at #/items: Unknown format: colour",
    '{"enum":[]}': "the JSON schema cannot be used, at #: Unsatisfiable schema: anyOf is empty",
    '{"oneOf":[{"minimum":1},{"maximum":2}]}': (
        "the JSON schema cannot be used, at #: oneOf is supported only if its parts exclude each other: use anyOf"
    ),
}


@pytest.mark.parametrize("schema", REFUSED)
def test_unusable_schemas_are_refused_with_their_position(schema: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Constraint.json_schema(schema)
    assert str(refusal.value) == REFUSED[schema]


@pytest.mark.parametrize(
    "keyword",
    [
        *("not", "if", "contains", "minContains", "uniqueItems", "propertyNames", "dependentRequired", "dependencies"),
        *("dependentSchemas", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"),
    ],
)
def test_keywords_that_cannot_be_guaranteed_are_refused(keyword: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Constraint.json_schema(json.dumps({"$defs": {"part": {"type": "array", keyword: {}}}}))
    expected = f"the JSON schema uses {keyword} at #/$defs/part, which cannot be guaranteed: remove it"
    assert str(refusal.value) == expected


def test_annotations_are_ignored() -> None:
    remarks = {"title": "t", "description": "d", "default": {"not": 1}, "examples": [{"if": 2}], "deprecated": True}
    assert fits({**remarks, "$comment": "c", "x-order": 1, "type": "null"}, "null")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"items":' * 61 + "{}" + "}" * 61, '{"enum":[' + "[" * 60 + "]" * 60 + "]}"],
    ids=["endless", "deep", "deep enumeration"],
)
def test_deep_nesting_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="nested more than 60 levels deep"):
        Constraint.json_schema(text)


def test_references() -> None:
    schema = {"$defs": {"a b": {"type": "null"}}, "items": {"$ref": "#/$defs/a%20b"}, "type": "array"}
    assert fits(schema, "[null,null]")
    assert not fits(schema, "[1]")
    nested = {
        "$id": "http://x.org/r",
        "items": {"$id": "y", "$defs": {"z": {"const": 1}}, "anyOf": [{"$ref": "#/$defs/z"}]},
    }
    assert fits({**nested, "type": "array"}, "[1]")
    tree = {"type": "object", "properties": {"in": {"$ref": "#"}}, "additionalProperties": False}
    assert fits(tree, '{"in":{"in":{}}}')


def test_a_schema_with_very_many_parts_is_refused_in_time() -> None:
    with pytest.raises(UsageError, match="too big"):
        Constraint.json_schema(json.dumps({"enum": [str(number) for number in range(100_000)]}))
