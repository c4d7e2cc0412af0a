"""What a summary must look like to be shown: its parts, their types and bounds, as JSON schemas.

A summary may come from anywhere. It is held against its schema when it is read, so that whoever
shows it finds what is there to be of the type it should be.
"""

from functools import cache
from pathlib import Path
from typing import Any

from vitscope.errors import ResultError
from vitscope.files.printable import printable, printable_path

Schema = dict[str, Any]

_NUMBER: Schema = {"type": "number", "minimum": -1e300, "maximum": 1e300}
_DEFINED_OR_NOT: Schema = {**_NUMBER, "type": ["number", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0, "maximum": 2**53}
_TEXT: Schema = {"type": "string"}
_TEXTS: Schema = {"type": "array", "items": _TEXT}
_SIZE: Schema = {
    "type": "array",
    "items": {**_COUNT, "minimum": 1, "maximum": 2**16},
    "minItems": 2,
    "maxItems": 2,
}
_INTERVAL: Schema = {"type": ["array", "null"], "items": _NUMBER, "minItems": 2, "maxItems": 2}


def _object(properties: Schema, *, others: Schema | bool = True, optional: Schema = {}) -> Schema:  # noqa: B006 - only read
    return {
        "type": "object",
        "properties": {**properties, **optional},
        "required": list(properties),
        "additionalProperties": others,
    }


def _each(schema: Schema, **required: Schema) -> Schema:
    return _object(required, others=schema)


_ESTIMATE = _object({"value": _DEFINED_OR_NOT, "ci95": _INTERVAL})
_MEASURED = _object({"value": _NUMBER, "ci95": {**_INTERVAL, "type": "array"}})
_CKA = _object(
    {
        "unbiased": _DEFINED_OR_NOT,
        "ci95": _INTERVAL,
        "biased": _DEFINED_OR_NOT,
        "biased_if_unrelated": _DEFINED_OR_NOT,
    }
)
_GRAM_SHARE = _object({"unbiased": _DEFINED_OR_NOT, "ci95": _INTERVAL, "biased": _DEFINED_OR_NOT})
_DISTRIBUTION: Schema = {
    "anyOf": [
        {"type": "null"},
        _object(
            {**dict.fromkeys(("mean", "std", "p05", "p50", "p95"), _DEFINED_OR_NOT), "n": _COUNT}
        ),
    ]
}
_NUMBERS: Schema = {
    "anyOf": [_DEFINED_OR_NOT, {"type": "object", "additionalProperties": {"$ref": "#/$defs/n"}}]
}
_MODEL = _object(
    {
        "id": _TEXT,
        "family": _TEXT,
        "num_params": _COUNT,
        "num_registers": _COUNT,
        "depth": _COUNT,
        "input_size": _SIZE,
        "grid": _SIZE,
        "dtype": _TEXT,
        "notes": _TEXTS,
    }
)
_LEDGER = _object({"max_balance_error": _DEFINED_OR_NOT, "tolerance": _NUMBER})
_DATA = {"num_images": _COUNT, "num_failed": _COUNT}
_COMMON = {"schema_version": _COUNT, "kind": _TEXT, "model": _MODEL}

_VERDICT = {
    "verdict": _TEXT,
    "verdict_text": _TEXT,
    "main_other_source": {"type": ["string", "null"]},
}
_LAYER = {
    "attention_mass": _each(_DISTRIBUTION),
    "contribution_norm": _each(_DISTRIBUTION),
    "variance_share": _each(_each(_ESTIMATE), residual=_each(_ESTIMATE, patches=_ESTIMATE)),
    "cka": _each(_each(_CKA), residual=_each(_CKA, patches=_CKA)),
}
_OF_LAYER = {
    "cosine": _each(_each(_DISTRIBUTION)),
    "centred_cosine": _each(_each(_DISTRIBUTION)),
    "restricted_cosine": _each(_each(_DISTRIBUTION)),
    "share": _each(_DISTRIBUTION),
    "centred_share": _each(_DISTRIBUTION),
    "gram_ledger": _each(_each(_each(_GRAM_SHARE))),
}
_AUDIT = _object(
    {
        **_COMMON,
        "data": _object(_DATA, optional={"notes": _TEXTS}),
        "ledger": {**_LEDGER, **_object({**_LEDGER["properties"], "num_verified": _COUNT})},
        "layer": _COUNT,
        **_VERDICT,
        **_LAYER,
    },
    optional={
        **_OF_LAYER,
        "layers": _each(_object(_LAYER, optional={**_OF_LAYER, **_VERDICT})),
    },
)
_ACCURACY = _object({"top1": _MEASURED, "top5": _MEASURED})
_PARTS = _each(_ACCURACY, full=_ACCURACY, patches=_ACCURACY)
_ONE_SHOT = _object(
    {
        **_COMMON,
        "data": _object(
            {
                **_DATA,
                "num_classes": _COUNT,
                "num_repeated": _COUNT,
                "num_unlabelled": _COUNT,
                "dropped_classes": _TEXTS,
            },
            optional={"notes": _TEXTS},
        ),
        "draws": _COUNT,
        "readout": {"const": "attention"},
        "accuracy": {
            **_each(_each(_PARTS, attention=_PARTS, embedding=_PARTS)),
            "minProperties": 1,
        },
        "chance": _object({"top1": _NUMBER, "top5": _NUMBER}),
    }
)
_IMAGE = _object(
    {
        "path": _TEXT,
        "image_id": _TEXT,
        "maps": _TEXT,
        "framing": {"enum": ["whole", "cropped"]},
        "input_size": _SIZE,
        "grid": _SIZE,
        "verdict": _object(
            {
                "status": _TEXT,
                "share": _DEFINED_OR_NOT,
                "main_other_source": {"type": ["string", "null"]},
                "text": _TEXT,
                "basis": _TEXT,
            }
        ),
    },
    others={"$ref": "#/$defs/n"},
)
_EXPLANATION = _object(
    {
        **_COMMON,
        "data": _object(_DATA, optional={"notes": _TEXTS}),
        "ledger": _LEDGER,
        "layer": _COUNT,
        "images": {"type": "array", "items": _IMAGE},
    },
    optional={"references_not_used": _TEXTS, "reference": {"type": ["object", "null"]}},
)
_SCHEMAS = {"audit": _AUDIT, "one-shot": _ONE_SHOT, "explanation": _EXPLANATION}


def check_summary(summary: Any, path: Path) -> None:
    """Refuse a summary that does not look as vitscope writes it."""
    from jsonschema.exceptions import best_match

    kind = summary["kind"]
    try:
        error = best_match(_make_validator(kind).iter_errors(summary))
    except RecursionError:
        raise ResultError(f"{printable_path(path)} is damaged: nested too deeply") from None
    if error is not None:
        where = printable(".".join(map(str, error.absolute_path))[:100]) or "the whole"
        raise ResultError(f"{printable_path(path)} is damaged at {where}: {_explain(error)}")


def _explain(error: Any) -> str:
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"{missing} is missing"
    given = printable(repr(error.instance))
    given = given if len(given) <= 60 else f"{given[:60]} …"
    return f"{given} is not as vitscope writes it"


@cache
def _make_validator(kind: str) -> Any:
    from jsonschema import Draft202012Validator

    return Draft202012Validator({**_SCHEMAS[kind], "$defs": {"n": _NUMBERS}})
