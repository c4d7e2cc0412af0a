"""Generates docs/summary.schema.json from the dataclasses of summaries."""

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Literal, get_args, get_origin

from vitscope.files.typed_json import (
    LARGEST,
    MOST,
    Defined,
    Finite,
    Keys,
    NotEmpty,
    Within,
    list_fields,
)
from vitscope.results.schema import KINDS, SCHEMA_VERSION

SCRIPT = "python tests/schema_page.py"
PAGE = Path(__file__).parents[1] / "docs" / "summary.schema.json"
_PLAIN = {
    float: {"type": ["number", "null"], "minimum": -LARGEST, "maximum": LARGEST},
    int: {"type": "integer", "minimum": 0, "maximum": MOST},
    str: {"type": "string"},
    bool: {"type": "boolean"},
}


def make_schema():
    """The schema of `summary.json`, of any kind."""
    defs = {}
    return {
        "$comment": f"Made by `{SCRIPT}`; do not edit.",
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "summary.json of vitscope",
        "oneOf": [_describe_kind(kind, defs) for kind in KINDS],
        "$defs": dict(sorted(defs.items())),
    }


def _describe_kind(kind, defs):
    content = _describe_fields(kind, defs)
    head = {"schema_version": {"const": SCHEMA_VERSION}, "kind": {"const": kind.KIND}}
    content["properties"] = head | content["properties"]
    content["required"] = [*head, *content["required"]]
    return content


def _describe_fields(kind, defs):
    hints = list_fields(kind)
    optional = {
        f.name for f in fields(kind) if f.default is not MISSING or f.default_factory is not MISSING
    }
    return {
        "type": "object",
        "description": kind.__doc__.partition("\n")[0],
        "properties": {name: describe(hint, defs) for name, hint in hints.items()},
        "required": [name for name in hints if name not in optional],
    }


def describe(hint, defs):
    """The schema of an annotation; schemas of dataclasses are added to `defs`."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    if is_dataclass(hint):
        if hint.__name__ not in defs:
            defs[hint.__name__] = _describe_fields(hint, defs)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _DESCRIBED[get_origin(hint)](get_args(hint), defs)


def _describe_union(args, defs):
    (hint,) = (arg for arg in args if arg is not type(None))
    content = describe(hint, defs)
    if content.get("type") == ["number", "null"]:
        return content
    return {"anyOf": [content, {"type": "null"}]}


def _describe_tuple(args, defs):
    items = [describe(Finite if arg is float else arg, defs) for arg in args if arg is not ...]
    if args[-1] is ...:
        return {"type": "array", "items": items[0]}
    return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items)}


def _describe_mapping(args, defs):
    return {"type": "object", "additionalProperties": describe(args[1], defs)}


def _describe_marked(args, defs):
    content = describe(args[0], defs)
    for mark in args[1:]:
        match mark:
            case Within(low, high):
                content |= {"minimum": low, "maximum": high}
            case Defined():
                content["type"] = "number"
            case NotEmpty():
                content["minItems" if content["type"] == "array" else "minProperties"] = 1
            case Keys(names):
                content["required"] = list(names)
    return content


_DESCRIBED = {
    Annotated: _describe_marked,
    Literal: lambda args, _: {"enum": list(args)},
    Mapping: _describe_mapping,
    dict: _describe_mapping,
    tuple: _describe_tuple,
    type(int | None): _describe_union,
    get_origin(Literal["a"] | None): _describe_union,
}


def render_page():
    """The content of the file."""
    return json.dumps(make_schema(), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render_page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
