"""Schemas for make_schemas.py that no chance would write."""

import enum
from typing import Literal, Optional, Union

import pydantic

# With texts that match or nearly do.
PATTERNS = {
    "^[a-z]+$": ["a", "abc", "aBc", "", "ab1", "é"],
    "^[A-Z]{2}-\\d{3}$": ["AB-123", "AB-12", "ab-123", "AB-1234", "XAB-123"],
    "foo|bar": ["foo", "xbarx", "fo", "ba r", "foobar"],
    "^\\+?[0-9 ]{3,10}$": ["+123", "123 456", "12", "+", "12345678901"],
    "^(red|green|blue)$": ["red", "green", "blue", "Red", "redd", ""],
    "\\.(png|jpg)$": ["a.png", "b.jpg", "a.gif", "png", ".png"],
    '^[^"]*$': ["", "abc", 'a"b', "é"],
}


def obj(properties, required=None, additional=False, **more):
    result = {"type": "object", "properties": properties}
    if required is not None:
        result["required"] = required
    if additional is not None:
        result["additionalProperties"] = additional
    return {**result, **more}


class Color(enum.Enum):
    RED = "red"
    GREEN = "grün"


class Strict(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")


class Address(Strict):
    street: str
    city: str = "Berlin"
    zip_code: Optional[str] = pydantic.Field(default=None, pattern="^[A-Z]{2}-\\d{3}$")


class Person(Strict):
    """A person."""

    name: str = pydantic.Field(min_length=1, max_length=10)
    age: int = pydantic.Field(ge=0, lt=150)
    height: Optional[float] = pydantic.Field(default=None, gt=0.3, le=2.75)
    color: Color
    addresses: list[Address] = pydantic.Field(default_factory=list, max_length=3)
    tags: dict[str, int] = {}
    kind: Literal["human"] = "human"


class Leaf(Strict):
    type: Literal["leaf"]
    value: Union[int, str, bool, None]


class Branch(Strict):
    type: Literal["branch"]
    left: "Tree"
    right: Optional["Tree"] = None


Tree = Union[Leaf, Branch]
Branch.model_rebuild()


class Root(Strict):
    tree: Union[Leaf, Branch] = pydantic.Field(discriminator="type")
    pair: tuple[int, str]


class Step(Strict):
    explanation: str
    output: str


class Reasoning(Strict):
    steps: list[Step] = pydantic.Field(min_length=1)
    final_answer: str
    confidence: float = pydantic.Field(ge=0, le=1)


class Linked(Strict):
    value: int
    next: Optional["Linked"]


POINT = obj({"x": {"type": "integer"}, "y": {"type": "integer"}}, ["x", "y"])

HAND = [
    {},
    True,
    {"type": "null"},
    {"type": "boolean"},
    {"type": "integer"},
    {"type": "number"},
    {"type": "string"},
    {"type": "array"},
    {"type": "object"},
    {"type": ["string", "null"]},
    {"type": ["integer", "boolean", "array"]},
    {"type": ["integer", "number"]},
    {"type": "integer", "minimum": 0},
    {"type": "integer", "maximum": -1},
    {"type": "integer", "minimum": -7, "maximum": 132},
    {"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 101},
    {"type": "integer", "minimum": 1.5, "maximum": 3.5},
    {"type": "integer", "multipleOf": 10, "minimum": -25, "maximum": 130},
    {"type": "number", "multipleOf": 1, "maximum": 12},
    {"type": "number", "minimum": 0, "maximum": 1},
    {"type": "number", "exclusiveMinimum": -0.25, "maximum": 10.5},
    {"type": "number", "minimum": 1e-3},
    {"type": "number", "exclusiveMaximum": 0},
    {"type": "number", "minimum": -273.15, "maximum": 99.5},
    {"type": ["number", "string"], "minimum": 3, "maxLength": 2},
    {"type": "string", "minLength": 1},
    {"type": "string", "maxLength": 3},
    {"type": "string", "minLength": 2, "maxLength": 2},
    {"type": "string", "minLength": 9, "maxLength": 10},
    *({"type": "string", "pattern": p} for p in PATTERNS),
    {"type": "string", "pattern": "^(red|green|blue)$", "minLength": 3, "maxLength": 5},
    {"enum": ["a", "b", "ab", ""]},
    {"enum": [1, 2.5, None, True, "x"]},
    {"enum": ["日本語", 'quote"d', "line\nbreak", "🙂"]},
    {"type": "string", "enum": ["a", 1, None, "b"]},
    {"type": "integer", "enum": [1, 5, 12], "minimum": 3},
    {"enum": ["a", "abc", "abcd"], "maxLength": 3},
    {"const": {"a": [1, {"b": None}], "c": "é"}},
    {"const": []},
    {"const": {}},
    {"enum": [[1, 2], {"k": "v"}, [], "s"]},
    {"const": "only", "enum": ["only", "other"]},
    {"enum": ["red", "reddish", "x"], "pattern": "^(red|green|blue)$"},
    {"type": "array", "items": {"type": "integer"}},
    {"type": "array", "items": {"type": "string"}, "minItems": 1},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 4},
    {"type": "array", "maxItems": 0},
    {"type": "array", "items": False},
    {"type": "array", "maxItems": 1, "uniqueItems": True},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False, "minItems": 2},
    {
        "type": "array",
        "prefixItems": [{"type": "integer"}, {"type": "string"}, {"type": "null"}],
        "minItems": 1,
        "maxItems": 2,
    },
    {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "boolean"}, "minItems": 2, "maxItems": 5},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "integer"}]},
    {"type": "array", "items": {"type": "array", "items": {"type": "integer"}, "maxItems": 2}},
    {"type": "array", "items": POINT, "minItems": 1, "maxItems": 3},
    POINT,
    obj({}),
    obj({"a": {"type": "integer"}}),
    obj({"a": {"type": "integer"}, "b": {"type": "string"}}),
    obj({"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}, ["c"]),
    obj({"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}, ["b"]),
    obj({"a": {"type": "integer"}, "b": {"type": "string"}, "c": {"type": "null"}}, ["a"]),
    obj({"a": {"type": "integer"}, "b": False, "c": {"type": "null"}}),
    obj({"a": {"type": "integer"}, "b": POINT, "c": POINT, "d": {"type": "array", "items": POINT}}, ["d"]),
    obj(
        {"a/b": {"type": "integer"}, "": {"type": "null"}, "日本": {"type": "string"}, 'q"': {"type": "boolean"}},
        ["日本"],
    ),
    obj({"a": {"type": "integer"}}, [], True),
    obj({"a": {"type": "integer"}, "ab": {"type": "integer"}}, ["a"], {"type": "string"}),
    obj({"name": {"type": "string"}, "né": {"type": "null"}}, ["name"], {"type": "integer"}),
    obj({"a": {"type": "integer"}}, ["a", "zzz"], {"type": "string"}),
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object", "additionalProperties": POINT},
    {"type": "object", "additionalProperties": False},
    {"type": "object", "minProperties": 1},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 2, "maxProperties": 3},
    {"type": "object", "maxProperties": 0},
    {"type": "object", "required": ["k"]},
    obj({"a": {"type": "integer"}}, ["a"], {"type": "integer"}, minProperties=2, maxProperties=3),
    {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    {"oneOf": [{"type": "string"}, {"type": "null"}]},
    {"type": "string", "anyOf": [{"minLength": 3}, {"pattern": "^(red|green|blue)$"}]},
    {"anyOf": [POINT, obj({"r": {"type": "number"}}, ["r"])], "description": "A place."},
    {"minimum": 3, "anyOf": [{"type": "integer"}, {"type": "null"}]},
    {
        "anyOf": [
            {"type": "array", "items": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
            {"type": "boolean"},
            False,
        ]
    },
    {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 9}, {"minimum": 1}]},
    {"allOf": [{"type": ["string", "integer"]}, {"type": ["integer", "null"]}]},
    {"allOf": [{"enum": ["a", "b", "c"]}, {"enum": ["c", "d", "a"]}]},
    {"$defs": {"p": {"type": "integer", "minimum": 0}}, "$ref": "#/$defs/p", "maximum": 10},
    {
        "$defs": {"a/b": {"type": "boolean"}, "c~d": {"type": "null"}, "e f": {"type": "integer"}},
        "anyOf": [{"$ref": "#/$defs/a~1b"}, {"$ref": "#/$defs/c~0d"}, {"$ref": "#/$defs/e%20f"}],
    },
    {
        "$defs": {"node": obj({"v": {"type": "integer"}, "next": {"$ref": "#/$defs/node"}}, ["v"])},
        "$ref": "#/$defs/node",
    },
    obj({"v": {"type": "integer"}, "children": {"type": "array", "items": {"$ref": "#"}}}, ["v"]),
    {
        "$defs": {
            "json": {
                "anyOf": [
                    {"type": "null"},
                    {"type": "integer"},
                    {"type": "array", "items": {"$ref": "#/$defs/json"}},
                    {"type": "object", "additionalProperties": {"$ref": "#/$defs/json"}},
                ]
            }
        },
        "$ref": "#/$defs/json",
    },
    {"definitions": {"n": {"type": "integer"}}, "type": "array", "items": {"$ref": "#/definitions/n"}},
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "unevaluatedProperties": False},
    *(model.model_json_schema() for model in (Address, Person, Root, Reasoning, Linked)),
]

# allOf over objects, and what else the sampler below does not know: with documents by hand.
WITH_DOCUMENTS = [
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                {"type": "object", "properties": {"b": {"type": "string"}}},
            ],
            "unevaluatedProperties": False,
        },
        [{"a": 1}, {"a": 1, "b": "x"}, {"b": "x"}, {"a": "x"}, {"a": 1, "b": 2}, {"a": 1, "c": 2}, {}],
    ),
    (
        {
            "$defs": {"base": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]}},
            "allOf": [{"$ref": "#/$defs/base"}],
            "properties": {"name": {"type": "string"}},
            "required": ["name"],
            "unevaluatedProperties": False,
        },
        [{"id": 1, "name": "n"}, {"id": 1}, {"name": "n"}, {"id": 1, "name": "n", "x": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
            "additionalProperties": False,
            "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        [{"a": 1}, {"b": 1}, {"a": 1, "b": 2}, {}, {"c": 1}],
    ),
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer", "minimum": 2}},
            "allOf": [{"properties": {"a": {"maximum": 5}}}],
            "unevaluatedProperties": False,
        },
        [{"a": 2}, {"a": 5}, {"a": 1}, {"a": 6}, {}, {"a": None}],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": True}, "additionalProperties": False},
                {"properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}},
            ]
        },
        [{"a": 1}, {}, {"a": 1, "b": 1}, {"b": 1}, {"a": "x"}],
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": True}, "additionalProperties": {"type": "integer"}},
                {"properties": {"b": {"minimum": 3}}, "additionalProperties": {"type": ["integer", "string"]}},
            ]
        },
        [
            {"a": "x", "b": 3},
            {"b": 2},
            {"b": "x"},
            {"a": "x", "c": 1},
            {"a": "x", "c": "y"},
            {"a": 1, "b": 4, "c": 5, "d": 6},
        ],
    ),
    (
        {
            "allOf": [
                {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "string"}},
                {"prefixItems": [{"minimum": 2}, {"maxLength": 2}], "items": {"minLength": 1}, "minItems": 1},
            ]
        },
        [[2], [1], [2, "ab"], [2, "abc"], [2, "", "x"], [2, "", ""], [], [2, 3], [2, "a", "bcd", "e"]],
    ),
    (
        {
            "$defs": {
                "node": {
                    "type": "object",
                    "properties": {"v": {"type": "integer"}, "n": {"$ref": "#/$defs/node", "minProperties": 1}},
                    "required": ["v"],
                    "additionalProperties": False,
                }
            },
            "$ref": "#/$defs/node",
            "type": "object",
        },
        [
            {"v": 1},
            {"v": 1, "n": {"v": 2}},
            {"v": 1, "n": {}},
            {"v": 1, "n": {"v": 2, "n": {"v": 3, "n": {"v": 4}}}},
            {"n": {"v": 1}},
        ],
    ),
    (
        {
            "type": "object",
            "properties": {"shape": {"enum": ["circle", "square"]}},
            "required": ["shape"],
            "oneOf": [
                {"properties": {"shape": {"const": "circle"}, "r": {"type": "integer"}}, "required": ["r"]},
                {"properties": {"shape": {"const": "square"}, "side": {"type": "integer"}}, "required": ["side"]},
            ],
            "unevaluatedProperties": False,
        },
        [
            {"shape": "circle", "r": 1},
            {"shape": "square", "side": 1},
            {"shape": "circle", "side": 1},
            {"shape": "x", "r": 1},
            {"shape": "circle"},
            {"shape": "square", "side": 1, "r": 1},
        ],
    ),
    (
        {
            "anyOf": [
                {"allOf": [{"type": "string"}, {"minLength": 2}]},
                {"allOf": [{"type": "integer"}, {"anyOf": [{"minimum": 5}, {"maximum": -5}]}]},
            ]
        },
        ["ab", "a", 5, 4, -4, -5, None, "", 100],
    ),
    (
        {
            "properties": {"a": {"type": "array", "prefixItems": [{"const": 1}], "unevaluatedItems": False}},
            "type": "object",
            "additionalProperties": False,
        },
        [{}, {"a": []}, {"a": [1]}, {"a": [2]}, {"a": [1, 1]}],
    ),
]
