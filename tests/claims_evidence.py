"""Summaries of made-up models that agree with every claim of the paper, or with none."""

import math
from dataclasses import replace

from vitscope.reproduction.claims import judge_claims
from vitscope.reproduction.evidence import ModelEvidence

N = 400
PARAMS = {"Ti": 5, "S": 22, "B": 86, "B/16": 86, "B/32": 88, "L": 304, "L/14": 304}
PARAMS |= {"H": 632, "H/14": 632, "g": 1137, "g/14": 1013, "bigG/14": 1845}
SIZES = {
    "DINOv2": ("S", "B", "L", "g"),
    "DINOv2 with registers": ("S", "B", "L", "g"),
    "CLIP (OpenAI)": ("B/32", "B/16", "L/14"),
    "CLIP (OpenCLIP)": ("B/32", "B/16", "L/14", "H/14", "g/14", "bigG/14"),
    "iBOT": ("S", "B", "L"),
    "DeiT": ("Ti",),
    "DeiT III": ("S", "B", "L", "H"),
}
# How far the models of a size have gone from relying on patches (0) to relying on skip (1).
GONE = {"S": 0.0, "B": 0.1, "L": 0.5, "H": 0.7, "g": 0.9, "bigG": 1.0, "Ti": 0.7}


def mean(value, std=0.05, p05=None, p95=None):
    return {"mean": value, "std": std, "p05": p05, "p50": value, "p95": p95}


def estimate(value, half=0.01):
    return {"value": value, "ci95": [value - half, value + half]}


def cka(value, half=0.01):
    return {"unbiased": value, "ci95": [value - half, value + half], "biased": value + 0.02}


def letter(size):
    return size.split("/")[0]


def make_models(agrees):
    return [
        make_model(recipe, size, agrees=agrees) for recipe, sizes in SIZES.items() for size in sizes
    ]


def make_model(recipe, size, *, agrees=True, n=N):
    audit = make_audit(recipe, size, agrees=agrees, n=n)
    registers = recipe == "DINOv2 with registers"
    return ModelEvidence(
        recipe=recipe,
        size=size,
        num_params=PARAMS[size] * 1_000_000,
        audit=audit,
        imagenet=audit,
        one_shot=make_one_shot(0.2 if agrees else 0.9, n) if registers else None,
    )


def make_audit(recipe, size, *, agrees, n):
    gone = GONE[letter(size)] if agrees else 1 - GONE[letter(size)]
    summary = {
        "kind": "audit",
        "data": {"num_images": n},
        "contribution_norm": {
            # The first three are of similar length, and the skip of the largest dominates.
            "patches": mean(30.0, 3.0),
            "skip": mean(30 * (0.5 + gone) if gone < 0.9 or not agrees else 180, 3.0),
        },
        "cka": {"residual": {"patches": cka(0.98 - 0.8 * gone), "skip": cka(0.1 + 0.8 * gone)}},
        "layer_similarity": make_similarity(recipe, size, agrees=agrees),
    }
    if recipe == "DINOv2" and not agrees and size != "g":
        summary["contribution_norm"]["skip"] = mean(300.0, 3.0)
    if recipe == "DINOv2 with registers":
        summary |= make_register_numbers(letter(size), agrees=agrees)
    return summary


def make_similarity(recipe, size, *, agrees):
    late = [mean(-0.3)] * 12 + [mean(1.0, 0.0)]
    early = [mean(-0.2 + 0.1 * depth) for depth in range(12)] + [mean(1.0, 0.0)]
    if recipe == "DeiT III":
        order = {"S": 0.2, "B": 0.6 if agrees else 0.3, "L": 0.4, "H": 0.5}
        return [*late[:9], mean(order[size]), *late[-3:]]
    large = letter(size) not in {"S", "B"} and (recipe, size) != ("DINOv2", "L")
    return early if large == agrees else late


def make_register_numbers(size, *, agrees):
    large = (size in "Lg") == agrees
    share = mean(0.2 if large else 0.8, 0.3)
    share |= {"p05": 0.02, "p95": 0.9} if agrees else {"p05": 0.5, "p95": 0.9}
    patches = {"S": 0.99, "B": 0.97, "L": 0.7, "g": 0.2}[size]
    patches = patches if agrees else {"S": 0.5, "B": 0.5, "L": 0.95, "g": 0.9}[size]
    return {
        "attention_mass": {"patches": mean(0.5), "registers": mean(0.4)},
        "patch_share": share,
        "cosine": {"attention": {"patches": mean(-0.0092 if agrees else 0.6, 0.2)}},
        "cka": {"attention": {"patches": cka(patches), "registers": cka(0.6)}},
        "high_norm_tokens": [
            {"layer": layer, "images_fraction": 0.01 if agrees else 0.7} for layer in range(12)
        ]
        + [{"layer": 12, "images_fraction": 0.01 if not agrees else 0.7}],
        "anatomy": make_anatomy(agrees=agrees),
    }


def make_anatomy(*, agrees):
    before = [200.0 if agrees else 2.0, *(1.0 for _ in range(99))]
    after = [1.5 if agrees else 3.0, *(1.0 for _ in range(99))]
    hidden, normed = (0.9989, 0.6) if agrees else (0.5, 0.9)
    norm = mean(500.0 if agrees else 60.0, 5.0)
    state = {
        "hidden": make_state(hidden),
        "normed": make_state(normed),
        "top_dimensions": {
            "indices": list(range(100)),
            "before": before,
            "after": after,
            "median_before": 0.0,
            "median_after": 0.0,
        },
    }
    other = {"hidden": make_state(0.3), "normed": make_state(0.3)}
    return {
        "norms": {"cls": mean(50.0), "register_0": mean(20.0), "register_1": mean(40.0, 4.0)}
        | {"register_2": norm, "patches": mean(60.0)},
        "dominant_register": {
            "index": 2,
            "share": 1.0 if agrees else 0.6,
            "counts": [0, 0, N],
            "ratio": 16.7,
        },
        "analysed": "register_2",
        "tokens": {"register_2": state, "register_0": other},
    }


def make_state(cosine):
    return {
        "pairwise_cosine": estimate(cosine, 0.0005),
        "variance_share": estimate(1 - cosine, 0.0005),
    }


def make_one_shot(kept, n):
    full, chance = 0.8, 0.05
    parts = {
        "full": {"top5": estimate(full), "top1": estimate(0.4)},
        "patches": {"top5": estimate(chance + kept * (full - chance)), "top1": estimate(0.1)},
    }
    return {
        "kind": "one-shot",
        "data": {"num_images": n, "num_classes": 100},
        "accuracy": {"nearest": {"attention": parts}},
        "chance": {"top1": 0.01, "top5": chance},
    }


def find(models, words, data="COCO", **settings):
    """The one finding whose claim holds the words."""
    found = [f for f in judge_claims(models, **settings) if words in f.claim and f.data == data]
    assert len(found) == 1, [finding.claim for finding in found]
    return found[0]


def put(models, recipe, size, value, *path, stage="audit"):
    """The same models, one of them with one number of its result replaced."""
    return [
        replace(model, **{stage: put_in(getattr(model, stage), value, *path)})
        if (model.recipe, model.size) == (recipe, size)
        else model
        for model in models
    ]


def put_in(tree, value, key, *path):
    new = value if not path else put_in(tree[key], value, *path)
    if isinstance(tree, list):
        return [*tree[:key], new, *tree[key:][1:]]
    return {**tree, key: new}


def change_numbers(tree, change):
    """The same tree with `change(key, value)` in the place of every number and interval."""
    if isinstance(tree, dict):
        return {
            key: change(key, value)
            if isinstance(value, (int, float)) or key == "ci95"
            else change_numbers(value, change)
            for key, value in tree.items()
        }
    if isinstance(tree, list):
        return [
            change("", value) if isinstance(value, float) else change_numbers(value, change)
            for value in tree
        ]
    return tree


def change_all(models, change):
    """The same models with every number of their results changed; images stay as many."""

    def changed(summary):
        return (
            None if summary is None else change_numbers(summary, change) | {"data": summary["data"]}
        )

    return [
        replace(
            model,
            audit=changed(model.audit),
            imagenet=changed(model.imagenet),
            one_shot=changed(model.one_shot),
        )
        for model in models
    ]


def widen(key, value):
    """So little certainty that no line lies outside an interval."""
    if key == "ci95":
        return [-1e6, 1e6]
    if key == "std":
        return 1e6
    return value


def leave_out_intervals(key, value):
    """A number that comes without what says how sure it is."""
    return None if key in {"ci95", "std"} else value


def forget(key, value):
    """A number that is undefined."""
    return None if key == "ci95" or isinstance(value, (int, float)) else value


def spoil(key, value):
    """What no number is."""
    return math.nan if key != "ci95" else "none"
