"""Writes schemas.json: JSON Schemas, and documents that satisfy them or do not, by the package jsonschema.

    python3 -m venv /tmp/schemas && /tmp/schemas/bin/pip install jsonschema==4.26.0 pydantic==2.14.4
    /tmp/schemas/bin/python tests/golden/grammar/make_schemas.py

Documents have their members in the order of the schema, closed objects say so (additionalProperties: false), and no
integer has a fraction: where our reading is narrower than the specification nothing is asked here.
"""

import copy
import json
import os
import random

from jsonschema import Draft202012Validator

from schemas_by_hand import HAND, PATTERNS, WITH_DOCUMENTS, obj

N_RANDOM_SCHEMAS = 70
RANDOM = random.Random(20261130)

STRINGS = [
    "",
    "a",
    "ab",
    "abc",
    "abcd",
    "Zürich",
    "日本語",
    "🙂",
    "🙂🙂",
    "with space",
    'quote"d',
    "back\\slash",
    "line\nbreak",
    "tab\t",
    "a/b",
    "0",
    "12",
    "null",
    "x" * 9,
    "x" * 10,
    "x" * 11,
    "\u0007",
    "é\u007f",
]
# ---- schemas ----


def random_schema(depth):
    kinds = ["integer", "number", "string", "enum", "boolean", "null"]
    if depth > 0:
        kinds += ["object"] * 5 + ["array"] * 3 + ["tuple", "map", "union", "open"]
    kind = RANDOM.choice(kinds)
    if kind == "integer":
        low = RANDOM.randint(-120, 120)
        bounds = {"minimum": low, "maximum": low + RANDOM.choice([0, 1, 9, 50, 1234])}
        return {"type": "integer", **{k: v for k, v in bounds.items() if RANDOM.random() < 0.5}}
    if kind == "number":
        low = RANDOM.randint(-2000, 2000) / RANDOM.choice([8, 100, 1000])
        bounds = {
            RANDOM.choice(["minimum", "exclusiveMinimum"]): low,
            RANDOM.choice(["maximum", "exclusiveMaximum"]): low + RANDOM.choice([0.5, 1.25, 33.125]),
        }
        return {"type": "number", **{k: v for k, v in bounds.items() if RANDOM.random() < 0.7}}
    if kind == "string":
        if RANDOM.random() < 0.4:
            return {"type": "string", "pattern": RANDOM.choice(list(PATTERNS))}
        least = RANDOM.choice([0, 1, 2, 9])
        lengths = {"minLength": least, "maxLength": least + RANDOM.choice([0, 1, 3])}
        return {"type": "string", **{k: v for k, v in lengths.items() if RANDOM.random() < 0.5}}
    if kind == "enum":
        return {"enum": RANDOM.sample(STRINGS + [0, 1, -5, 2.5, True, None], RANDOM.randint(1, 4))}
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind in ("object", "open"):
        names = RANDOM.sample(
            ["id", "name", "namen", "x", "y", "größe", "a b", "items", "type", 'q"', "na"], RANDOM.randint(1, 6)
        )
        additional = False if kind == "object" else RANDOM.choice([True, random_schema(0)])
        return obj(
            {n: random_schema(depth - 1) for n in names}, [n for n in names if RANDOM.random() < 0.5], additional
        )
    if kind == "array":
        least = RANDOM.choice([0, 0, 1, 2])
        limits = {"minItems": least, "maxItems": least + RANDOM.choice([0, 1, 3])}
        return {
            "type": "array",
            "items": random_schema(depth - 1),
            **{k: v for k, v in limits.items() if RANDOM.random() < 0.5},
        }
    if kind == "tuple":
        parts = [random_schema(depth - 1) for _ in range(RANDOM.randint(1, 3))]
        return {
            "type": "array",
            "prefixItems": parts,
            "items": RANDOM.choice([False, random_schema(depth - 1)]),
            "minItems": RANDOM.randint(0, len(parts)),
        }
    if kind == "map":
        return {"type": "object", "additionalProperties": random_schema(depth - 1)}
    return {"anyOf": [random_schema(depth - 1) for _ in range(RANDOM.randint(1, 3))]}


# ---- documents ----


def any_value(depth=2):
    kinds = ["integer", "number", "string", "boolean", "null"] + (["array", "object"] if depth else [])
    kind = RANDOM.choice(kinds)
    if kind == "array":
        return [any_value(depth - 1) for _ in range(RANDOM.randint(0, 3))]
    if kind == "object":
        return {RANDOM.choice(STRINGS): any_value(depth - 1) for _ in range(RANDOM.randint(0, 3))}
    return {
        "integer": RANDOM.randint(-200, 200),
        "number": RANDOM.randint(-999, 999) * 10 // 10 + 0.25,
        "string": RANDOM.choice(STRINGS),
        "boolean": RANDOM.random() < 0.5,
        "null": None,
    }[kind]


class GiveUp(Exception):
    pass


def sample(schema, root, depth=0):
    """A document that likely satisfies the schema."""
    if depth > 12 or schema is False:
        raise GiveUp
    if schema is True or not set(schema) - {"title", "description", "default", "$defs", "definitions"}:
        return any_value()
    if "$ref" in schema:
        target = root
        for name in schema["$ref"].split("/")[1:]:
            target = target[name.replace("%20", " ").replace("~1", "/").replace("~0", "~")]
        return sample(target, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return RANDOM.choice(schema["enum"])
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return sample(
                (
                    {**{k: v for k, v in schema.items() if k != union}, **RANDOM.choice(schema[union])}
                    if schema.keys() & {"type", "minimum"}
                    else RANDOM.choice(schema[union])
                ),
                root,
                depth + 1,
            )
    if "allOf" in schema:
        merged = {}
        for part in schema["allOf"]:
            merged.update(part)
        return sample(merged, root, depth + 1)
    kind = schema.get("type", "object")
    kind = RANDOM.choice(kind) if isinstance(kind, list) else kind
    if kind in ("integer", "number"):
        low = schema.get(
            "minimum", schema.get("exclusiveMinimum", schema.get("maximum", schema.get("exclusiveMaximum", 0)) - 60)
        )
        high = schema.get("maximum", schema.get("exclusiveMaximum", low + 120))
        near = RANDOM.choice([low, high, RANDOM.uniform(low, high)])
        step = schema.get("multipleOf", 1 if kind == "integer" else RANDOM.choice([1, 0.5, 0.25, 0.001]))
        return round(round(near / step) * step + RANDOM.choice([0, 0, step, -step]), 6)
    if kind == "string":
        if "pattern" in schema:
            return RANDOM.choice(PATTERNS[schema["pattern"]])
        least, most = schema.get("minLength", 0), schema.get("maxLength", 99)
        fitting = [s for s in STRINGS if least <= len(s) <= most]
        return RANDOM.choice(fitting or ["y" * least])
    if kind == "boolean":
        return RANDOM.random() < 0.5
    if kind == "null":
        return None
    if kind == "array":
        prefix = schema.get("prefixItems", [])
        least = schema.get("minItems", 0)
        most = schema.get("maxItems", len(prefix) + 3)
        n = RANDOM.randint(least, max(least, most))
        if schema.get("items") is False:
            n = min(n, len(prefix))
        return [sample((prefix + [schema.get("items", True)] * n)[i], root, depth + 1) for i in range(n)]
    result = {}
    for name, inner in schema.get("properties", {}).items():
        if name in schema.get("required", []) or RANDOM.random() < 0.5:
            try:
                result[name] = sample(inner, root, depth + 1)
            except GiveUp:
                if name in schema.get("required", []):
                    raise
    additional = schema.get("additionalProperties", "properties" not in schema)
    for name in schema.get("required", []):
        if name not in result:
            result[name] = sample(additional, root, depth + 1)
    if additional is not False:
        least = schema.get("minProperties", 0) - len(result)
        most = schema.get("maxProperties", len(result) + 3) - len(result)
        for name in RANDOM.sample(
            STRINGS + [n + "x" for n in result] + [n[:-1] for n in result if n],
            RANDOM.randint(max(least, 0), max(least, most, 0)),
        ):
            if name not in schema.get("properties", {}):
                result[name] = sample(additional, root, depth + 1)
    return result


def places(document, path=()):
    yield path
    if isinstance(document, dict):
        for key in document:
            yield from places(document[key], path + (key,))
    elif isinstance(document, list):
        for i in range(len(document)):
            yield from places(document[i], path + (i,))


def changed(value):
    """Another value, near to this one."""
    if isinstance(value, dict) and RANDOM.random() < 0.8:
        value = dict(value)
        if value and RANDOM.random() < 0.6:
            del value[RANDOM.choice(list(value))]
        else:
            name = RANDOM.choice(["zz", "", 'a"', "ü"] + [k + "x" for k in value] + [k[:-1] for k in value if k])
            if name not in value:
                value[name] = any_value(1)
        return value
    if isinstance(value, list) and RANDOM.random() < 0.8:
        value = list(value)
        if value and RANDOM.random() < 0.5:
            del value[RANDOM.randrange(len(value))]
        else:
            value.append(copy.deepcopy(value[-1]) if value and RANDOM.random() < 0.7 else any_value(1))
        return value
    if isinstance(value, str) and RANDOM.random() < 0.7:
        return RANDOM.choice([value + "x", value[:-1], value.upper(), value + "🙂", "x" + value])
    if isinstance(value, (int, float)) and not isinstance(value, bool) and RANDOM.random() < 0.8:
        return round(value + RANDOM.choice([1, -1, 10, -10, 100, 0.5, -0.001, 0.001]), 6)
    return any_value(1)


def mutated(document):
    path = RANDOM.choice(list(places(document)))
    if not path:
        return changed(document)
    document = copy.deepcopy(document)
    inner = document
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = changed(inner[path[-1]])
    return document


def out_of_order(schema, document, root):
    """Whether an object's members are not in the order in which some schema has them."""
    orders = []

    def collect(node):
        if isinstance(node, dict):
            if isinstance(node.get("properties"), dict):
                orders.append(
                    list(node["properties"]) + [r for r in node.get("required", []) if r not in node["properties"]]
                )
            for part in node.values():
                collect(part)
        elif isinstance(node, list):
            for part in node:
                collect(part)

    def wrong(node):
        if isinstance(node, dict):
            keys = list(node)
            for order in orders:
                ranks = [order.index(k) if k in order else len(order) for k in keys]
                if ranks != sorted(ranks):
                    return True
            return any(wrong(v) for v in node.values())
        return isinstance(node, list) and any(wrong(v) for v in node)

    collect(schema)
    return wrong(document)


def has_whole_float(node):
    if isinstance(node, dict):
        return any(has_whole_float(v) for v in node.values())
    if isinstance(node, list):
        return any(has_whole_float(v) for v in node)
    return isinstance(node, float) and (node == int(node) or "e" in repr(node))


def texts(document):
    return [
        json.dumps(document, ensure_ascii=False, separators=(",", ":")),
        json.dumps(document, ensure_ascii=False),
        json.dumps(document, ensure_ascii=False, indent=2),
    ]


def case(schema, documents, n_valid, n_invalid):
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    valid, invalid, seen = [], [], set()

    def add(document):
        written = texts(document)
        if (
            written[0] in seen
            or len(written[0]) > 600
            or has_whole_float(document)
            or out_of_order(schema, document, schema)
        ):
            return
        seen.add(written[0])
        if validator.is_valid(document):
            if len(valid) < 3 * n_valid:
                valid.extend(written)
        elif len(invalid) < n_invalid:
            invalid.append(written[len(invalid) % 3])

    for document in documents:
        add(document)
    for _ in range(60):
        try:
            document = sample(schema, schema)
        except GiveUp:
            continue
        add(document)
        for _ in range(3):
            document = mutated(document)
            add(document)
    return {"schema": schema, "valid": list(dict.fromkeys(valid)), "invalid": invalid}


def main():
    cases = [case(schema, documents, 99, 99) for schema, documents in WITH_DOCUMENTS]
    cases += [case(schema, [], 5, 8) for schema in HAND]
    while len(cases) < len(WITH_DOCUMENTS) + len(HAND) + N_RANDOM_SCHEMAS:
        schema = random_schema(3)
        found = case(schema, [], 4, 6)
        if len(json.dumps(schema)) > 60 and len(found["valid"]) >= 6 and found["invalid"]:
            cases.append(found)
    lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in cases)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "schemas.json"), "w", encoding="utf-8") as file:
        file.write("[\n" + lines + "\n]\n")
    print(
        len(cases),
        "schemas,",
        sum(len(c["valid"]) for c in cases),
        "valid texts,",
        sum(len(c["invalid"]) for c in cases),
        "invalid ones",
    )


if __name__ == "__main__":
    main()
