"""Made-up summaries of models that agree with every claim of the paper, or with none."""

import math
from dataclasses import fields, is_dataclass, replace

from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import (
    Directions,
    HighNormTokens,
    StateSummary,
    TokenSummary,
    TopDimensions,
)
from vitscope.metrics.jackknife import Estimate
from vitscope.reproduction.claims import judge_claims
from vitscope.reproduction.evidence import ModelEvidence
from vitscope.results.schema import (
    AuditLedger,
    AuditSummary,
    DataSummary,
    ModelSummary,
    OneShotData,
    OneShotSummary,
    PreprocessingSummary,
    Settings,
)
from vitscope.results.schema_numbers import (
    Anatomy,
    Chance,
    Cka,
    CovariateSummary,
    DominantRegister,
    LayerSummary,
    Measured,
    TopAccuracy,
)
from vitscope.results.verdict import Verdict

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
# How far models of a size have moved from relying on patches (0) to relying on skip (1).
GONE = {"S": 0.0, "B": 0.1, "L": 0.5, "H": 0.7, "g": 0.9, "bigG": 1.0, "Ti": 0.7}


def mean(value, std=0.05, p05=math.nan, p95=math.nan):
    return Distribution(float(value), std, p05, float(value), p95, N)


def estimate(value, half=0.01):
    return Estimate(value, (value - half, value + half))


def measured(value, half=0.01):
    return Measured(value, (value - half, value + half))


def cka(value, half=0.01):
    return Cka(value + 0.02, value, (value - half, value + half), math.nan)


def letter(size):
    return size.split("/")[0]


def make_models(agrees):
    return [
        make_model(recipe, size, agrees=agrees) for recipe, sizes in SIZES.items() for size in sizes
    ]


def make_model(recipe, size, *, agrees=True, n=N):
    audit = make_audit(recipe, size, agrees=agrees, n=n)
    registers, kept = recipe == "DINOv2 with registers", 0.2 if agrees else 0.9
    one_shot = {"one-shot": make_one_shot(recipe, size, kept, n)} if registers else {}
    return ModelEvidence(
        recipe=recipe,
        size=size,
        num_params=PARAMS[size] * 1_000_000,
        summaries={"COCO": audit, "ImageNet": audit} | one_shot,
    )


def make_audit(recipe, size, *, agrees, n):
    gone = GONE[letter(size)] if agrees else 1 - GONE[letter(size)]
    # The first three are of similar length, and the skip of the largest dominates.
    skip = mean(30 * (0.5 + gone) if gone < 0.9 or not agrees else 180, 3.0)
    if recipe == "DINOv2" and not agrees and size != "g":
        skip = mean(300.0, 3.0)
    layer = LayerSummary(
        index=11,
        verdict=Verdict("holds", None, ("holds", "holds"), ("holds", "holds"), "skip", "made up"),
        attention_mass={"patches": mean(1.0)},
        patch_share=mean(1.0, 0.0),
        contribution_norm={"patches": mean(30.0, 3.0), "skip": skip},
        cosine={"attention": {}, "residual": {}},
        restricted_cosine={},
        share={},
        variance_share={"attention": {}, "residual": {}},
        cka={
            "residual": {"patches": cka(0.98 - 0.8 * gone), "skip": cka(0.1 + 0.8 * gone)},
            "attention": {},
        },
        gram_ledger={},
        directions=Directions(0, {}, {}),
    )
    high_norm = ()
    if recipe == "DINOv2 with registers":
        layer = replace(layer, **make_register_numbers(letter(size), layer, agrees=agrees))
        early, late = (0.01, 0.7) if agrees else (0.7, 0.01)
        high_norm = (*(make_depth(early) for _ in range(12)), make_depth(late))
    return AuditSummary(
        **describe(recipe, size),
        data=DataSummary(num_images=n, num_failed=0),
        ledger=AuditLedger(max_balance_error=0.0, tolerance=1.0, num_verified=n),
        layers=(layer,),
        layer_similarity=make_similarity(recipe, size, agrees=agrees),
        high_norm_tokens=high_norm,
        covariates=CovariateSummary(distributions={}, correlations={}, regressions={}),
        interdependence=None,
    )


def describe(recipe, size):
    model = ModelSummary(
        id="made up",
        family="made up",
        recipe=recipe,
        size=size,
        num_params=PARAMS[size] * 1_000_000,
        depth=12,
        embed_dim=384,
        num_heads=6,
        patch_size=(14, 14),
        num_registers=0,
        global_feature="cls",
        grid=(16, 16),
        dtype="float32",
    )
    images = PreprocessingSummary(size=(224, 224), mean=(0.5,) * 3, std=(0.5,) * 3)
    return {"model": model, "settings": Settings(), "preprocessing": images}


def make_depth(images_fraction):
    return HighNormTokens(N, threshold=150.0, fraction=0.01, images_fraction=images_fraction)


def make_similarity(recipe, size, *, agrees):
    late = (*[mean(-0.3)] * 12, mean(1.0, 0.0))
    early = (*(mean(-0.2 + 0.1 * depth) for depth in range(12)), mean(1.0, 0.0))
    if recipe == "DeiT III":
        order = {"S": 0.2, "B": 0.6 if agrees else 0.3, "L": 0.4, "H": 0.5}
        return (*late[:9], mean(order[size]), *late[-3:])
    large = letter(size) not in {"S", "B"} and (recipe, size) != ("DINOv2", "L")
    return early if large == agrees else late


def make_register_numbers(size, layer, *, agrees):
    large = (size in "Lg") == agrees
    p05 = 0.02 if agrees else 0.5
    patches = {"S": 0.99, "B": 0.97, "L": 0.7, "g": 0.2}[size]
    patches = patches if agrees else {"S": 0.5, "B": 0.5, "L": 0.95, "g": 0.9}[size]
    cosine = mean(-0.0092 if agrees else 0.6, 0.2)
    return {
        "attention_mass": {"patches": mean(0.5), "registers": mean(0.4)},
        "patch_share": mean(0.2 if large else 0.8, 0.3, p05, 0.9),
        "cosine": {"attention": {"patches": cosine}, "residual": {}},
        "cka": {**layer.cka, "attention": {"patches": cka(patches), "registers": cka(0.6)}},
        "anatomy": make_anatomy(agrees=agrees),
    }


def make_anatomy(*, agrees):
    before = (200.0 if agrees else 2.0, *(1.0 for _ in range(99)))
    after = (1.5 if agrees else 3.0, *(1.0 for _ in range(99)))
    hidden, normed = (0.9989, 0.6) if agrees else (0.5, 0.9)
    dimensions = TopDimensions(tuple(range(100)), before, after, 0.0, 0.0)
    return Anatomy(
        norms={
            "cls": mean(50.0),
            "register_0": mean(20.0),
            "register_1": mean(40.0, 4.0),
            "register_2": mean(500.0 if agrees else 60.0, 5.0),
            "patches": mean(60.0),
        },
        dominant_register=DominantRegister(
            index=2, share=1.0 if agrees else 0.6, counts=(0, 0, N), ratio=16.7
        ),
        analysed="register_2",
        tokens={
            "register_2": make_token(hidden, normed, dimensions),
            "register_0": make_token(0.3, 0.3, dimensions),
        },
    )


def make_token(hidden, normed, dimensions):
    states = {"hidden": make_state(hidden), "normed": make_state(normed)}
    return TokenSummary(states=states, top_dimensions=dimensions)


def make_state(cosine):
    return StateSummary(
        pairwise_cosine=estimate(cosine, 0.0005), variance_share=estimate(1 - cosine, 0.0005)
    )


def make_one_shot(recipe, size, kept, n):
    full, chance = 0.8, 0.05
    patches = chance + kept * (full - chance)
    parts = {
        "full": TopAccuracy(top1=measured(0.4), top5=measured(full)),
        "patches": TopAccuracy(top1=measured(0.1), top5=measured(patches)),
    }
    return OneShotSummary(
        **describe(recipe, size),
        data=OneShotData(
            num_images=n, num_failed=0, num_classes=100, num_unlabelled=0, dropped_classes=()
        ),
        layer=11,
        draws=20,
        readout="attention",
        accuracy={"nearest": {"attention": parts}},
        chance=Chance(top1=0.01, top5=chance),
    )


def find(models, words, data="COCO", **settings):
    """Find the one finding whose claim contains the words."""
    found = [f for f in judge_claims(models, **settings) if words in f.claim and f.data == data]
    assert len(found) == 1, [finding.claim for finding in found]
    return found[0]


def put(models, recipe, size, value, *path, data="COCO"):
    """Replace one number in the result of one model."""
    return [
        put_in(model, value, "summaries", data, *path)
        if (model.recipe, model.size) == (recipe, size)
        else model
        for model in models
    ]


def put_in(tree, value, *path):
    """Replace the value at a path; the numbers of a layer are those of the last one."""
    if not path:
        return value
    key, *rest = path
    if isinstance(tree, AuditSummary) and not hasattr(tree, key):
        return replace(tree, layers=(put_in(tree.last, value, *path),))
    if is_dataclass(tree):
        return replace(tree, **{key: put_in(getattr(tree, key), value, *rest)})
    if isinstance(tree, tuple):
        return (*tree[:key], put_in(tree[key], value, *rest), *tree[key:][1:])
    return {**tree, key: put_in(tree.get(key), value, *rest)}


def change_numbers(tree, change, key=""):
    """Replace every number and interval by `change(key, value)`."""
    if isinstance(tree, PreprocessingSummary):
        return tree
    if isinstance(tree, float) or key == "ci95":
        return change(key, tree)
    if is_dataclass(tree):
        named = {field.name: getattr(tree, field.name) for field in fields(tree)}
        return replace(tree, **change_numbers(named, change))
    if isinstance(tree, dict):
        return {name: change_numbers(value, change, name) for name, value in tree.items()}
    if isinstance(tree, tuple):
        return tuple(change_numbers(value, change) for value in tree)
    return tree


def change_all(models, change):
    """Change every number in the results of all models; the number of images stays."""
    return [replace(model, summaries=change_numbers(model.summaries, change)) for model in models]


def widen(key, value):
    """Widen intervals so far that no line is outside."""
    if key == "ci95":
        return (-1e6, 1e6)
    return 1e6 if key == "std" else value


def leave_out_intervals(key, value):
    """Drop the interval of a number."""
    if key == "ci95":
        return None
    return math.nan if key == "std" else value


def forget(key, value):
    """Make a number undefined."""
    return None if key == "ci95" else math.nan
