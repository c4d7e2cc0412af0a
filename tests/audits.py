"""Shared by the tests of whole audits: a tiny model, and comparison of results."""

import json
from dataclasses import asdict, is_dataclass

import pytest

from vitscope.adapters.timm import make_timm_adapter
from vitscope.testing.tiny_timm import TINY_TIMM

NUM_IMAGES = 26
STATISTICS = {"mean", "std", "p05", "p50", "p95", "n"}
LAYER_NUMBERS = (
    "attention_mass",
    "patch_share",
    "largest_patch_attention",
    "attention_entropy",
    "contribution_norm",
    "cosine",
    "centred_cosine",
    "restricted_cosine",
    "share",
    "centred_share",
    "variance_share",
    "cka",
    "gram_ledger",
    "directions",
    "anatomy",
)
"""Quantities of each layer in a summary."""

NUMBERS = (
    *LAYER_NUMBERS,
    "layer_similarity",
    "high_norm_tokens",
    "covariates",
    "interdependence",
)


def tiny_vit(name="dinov2_reg"):
    return make_timm_adapter(TINY_TIMM[name](), model_id=f"tiny/{name}")


def flatten(tree, prefix=()):
    if is_dataclass(tree):
        tree = asdict(tree)
    if isinstance(tree, dict):
        return {
            k: v for key, value in tree.items() for k, v in flatten(value, (*prefix, key)).items()
        }
    if isinstance(tree, (list, tuple)):
        return {
            k: v for i, value in enumerate(tree) for k, v in flatten(value, (*prefix, i)).items()
        }
    return {prefix: tree}


def assert_same_numbers(a, b, tolerance):
    a, b = flatten(a), flatten(b)
    assert a.keys() == b.keys()
    for path, value in a.items():
        if isinstance(value, float):
            expected = pytest.approx(value, rel=tolerance, abs=tolerance, nan_ok=True)
            assert b[path] == expected, path
        else:
            assert b[path] == value, path


def numbers(result):
    """All numbers of a result; those of the last layer by name."""
    content = asdict(result.summary)
    return {name: (content["layers"][-1] | content)[name] for name in NUMBERS}


def read_strictly(result):
    """Read the summary with a strict JSON reader, which rejects NaN."""
    text = (result.folder / "summary.json").read_text(encoding="utf-8")
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in summary.json"))
    return result.summary


def named_vit(name="dinov2_reg"):
    """A model with an id that the command line accepts."""
    return tiny_vit(name).named(f"tiny/{name}", "made on the spot")
