"""Made-up results that follow the summary's schema, to draw figures from."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from made_numbers import (
    estimate,
    make_cka,
    make_covariates,
    make_high_norm,
    make_layer,
    make_similarity,
    make_trace,
)
from vitscope.figures import ModelResult
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.rank_correlation import RankCorrelation
from vitscope.results.saved_result import SavedResult
from vitscope.results.schema import (
    AuditLedger,
    AuditSummary,
    DataSummary,
    ModelSummary,
    OneShotData,
    OneShotSummary,
    PreprocessingSummary,
    Settings,
    write_summary,
)
from vitscope.results.schema_numbers import Chance, Interdependence, Measured, TopAccuracy
from vitscope.results.verdict import judge

SIZES = {"S": 22.1, "B": 86.6, "L": 304.4, "g": 1136.5}
DEPTHS = {"Ti": 12, "S": 12, "B": 12, "L": 24, "H": 32, "g": 40}
FAMILIES = {
    "DINOv2": SIZES,
    "DINOv2 with registers": SIZES,
    "DeiT": {"Ti": 5.5},
    "DeiT III": {"S": 21.7, "B": 85.8, "L": 303.3, "H": 630.8},
    "CLIP (OpenAI)": {"B/32": 87.8, "B/16": 86.2, "L/14": 304.0},
    "CLIP (OpenCLIP)": {
        "B/32": 87.8,
        "B/16": 86.2,
        "L/14": 304.0,
        "H/14": 630.8,
        "g/14": 1011.6,
        "bigG/14": 1843.3,
    },
    "iBOT": {"S": 21.7, "B": 85.8, "L": 303.3},
}


def describe_model(family, size, params_m, registers, name):
    depth = DEPTHS.get((size or "B").split("/")[0], 48)
    return ModelSummary(
        id=name,
        recipe=family,
        size=size,
        family="transformers/made-up",
        num_params=int(params_m * 1e6),
        num_registers=registers,
        depth=depth,
        embed_dim=384,
        num_heads=6,
        patch_size=(14, 14),
        global_feature="cls",
        grid=(16, 16),
        dtype="float32",
    )


PREPROCESSING = PreprocessingSummary(size=(224, 224), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def make_audit(family="DINOv2", size="S", params_m=22.1, *, registers=0, n=400, name=None):
    """A summary and the columns of its images; larger models rely less on their patches."""
    name = name or f"made/{family}-{size}".lower().replace(" ", "-")
    random = np.random.default_rng(sum(map(ord, f"{family}{size}")))
    big = min(1.0, max(0.0, math.log10(params_m / 10) / 2.1))
    model = describe_model(family, size, params_m, registers, name)
    terms = ["cls", *(["registers"] if registers else []), "patches", "skip"]
    shares = {"patches": 0.95 - 0.75 * big, "cls": 0.01, "registers": 0.0, "skip": 0.0}
    rest = 1 - shares["patches"] - shares["cls"]
    shares["registers"] = rest * 0.8 if registers else 0.0
    shares["skip"] = rest - shares["registers"]
    columns = make_columns(random, n, big, registers, shares)
    interdependence = Interdependence(
        shares="centred_share",
        over_images=RankCorrelation(rho=-0.62, ci95=(-0.68, -0.55), p=1e-9, n=n),
        over_layers=None,
    )
    summary = AuditSummary(
        model=model,
        settings=Settings(),
        preprocessing=PREPROCESSING,
        data=DataSummary(num_images=n, num_failed=0),
        ledger=AuditLedger(max_balance_error=1e-6, tolerance=1e-4, num_verified=n),
        layers=(make_layer(model.depth - 1, terms, shares, big, random, n, columns),),
        layer_similarity=make_similarity(model.depth, big, random, n),
        high_norm_tokens=make_high_norm(model.depth, big, registers, n),
        trace=make_trace(model.depth, big, registers),
        covariates=make_covariates(terms, random, n),
        interdependence=interdependence if registers else None,
    )
    return summary, columns


def make_columns(random, n, big, registers, shares):
    columns = {"path": [f"{i}.png" for i in range(n)], "image_id": [f"{i:040x}" for i in range(n)]}
    alpha, beta = 12 * (1 - big) + 1, 12 * big + 0.6
    columns["patch_share"] = random.beta(alpha, beta, n) if registers else np.ones(n)
    if registers:
        columns["centred_share_registers"] = random.normal(shares["registers"], 0.15, n)
        columns["centred_share_skip"] = (
            0.5 - 0.6 * columns["centred_share_registers"] + random.normal(0, 0.08, n)
        )
    return columns


def make_one_shot(family="DINOv2", size="S", params_m=22.1, *, registers=0, name=None):
    """A summary of one-shot classification."""
    name = name or f"made/{family}-{size}".lower().replace(" ", "-")
    big = min(1.0, max(0.0, math.log10(params_m / 10) / 2.1))
    parts = {"full": 0.7 + 0.1 * big, "patches": 0.7 - 0.5 * big**2, "skip": 0.2 + 0.3 * big}
    if registers:
        parts["registers"] = 0.1 + 0.5 * big
    accuracy = {part: make_accuracy(value * 0.8, value) for part, value in parts.items()}
    halved = {
        part: make_accuracy(value * 0.4, value / 2)
        for part, value in parts.items()
        if part != "skip"
    }
    model = describe_model(family, size, params_m, registers, name)
    return OneShotSummary(
        settings=Settings(),
        model=model,
        preprocessing=PREPROCESSING,
        data=OneShotData(
            num_classes=101, num_images=404, num_failed=0, num_unlabelled=0, dropped_classes=()
        ),
        layer=model.depth - 1,
        draws=20,
        readout="attention",
        accuracy={
            classifier: {"attention": accuracy, "values": halved, "embedding": accuracy}
            for classifier in ("nearest", "logistic")
        },
        chance=Chance(top1=1 / 101, top5=5 / 101),
    )


def make_accuracy(top1, top5):
    one, five = (Measured(value, (value - 0.02, value + 0.02)) for value in (top1, top5))
    return TopAccuracy(top1=one, top5=five)


def change(tree, value, *path):
    """A summary with another value at a path of fields, keys and indices."""
    if not path:
        return value
    key, *rest = path
    if isinstance(tree, tuple):
        key %= len(tree)
        return (*tree[:key], change(tree[key], value, *rest), *tree[key + 1 :])
    if isinstance(tree, dict):
        return {**tree, key: change(tree.get(key), value, *rest)}
    return replace(tree, **{key: change(getattr(tree, key), value, *rest)})


@dataclass(frozen=True)
class MadeResult(ModelResult):
    """A result in memory, with no files for its columns."""

    columns: dict = field(default_factory=dict)

    @classmethod
    def of(cls, summary, **settings):
        saved = SavedResult(Path(f"/nowhere/{summary.model.id}"))
        vars(saved)["summary"] = summary  # as if it had been read
        return cls(saved, **settings)

    def read_column(self, name):
        values = self.columns.get(name)
        return None if values is None else np.asarray(values, dtype=float)

    def change(self, value, *path):
        """The result with another number in its summary."""
        return self.of(change(self.summary, value, *path), columns=self.columns)

    def change_last(self, value, *path):
        """A result with another number in its last layer."""
        return self.change(value, "layers", -1, *path)


def hold_audit(*args, **settings):
    """An audit in memory."""
    summary, columns = make_audit(*args, **settings)
    return MadeResult.of(summary, columns=columns)


def hold_layers(shares, *args, n=400, **settings):
    """An audit in memory of the layers that `shares` names, with the patches' share at each.

    At a layer without a share nothing varies.
    """
    whole = hold_audit(*args, n=n, **settings)
    layers = tuple(_audit_layer(whole.audit.last, *item, n) for item in sorted(shares.items()))
    return whole.change(layers, "layers")


def _audit_layer(layer, index, share, n):
    terms = layer.variance_share["residual"]
    rest = None if share is None else (1 - share) / (len(terms) - 1)
    values = {term: share if term == "patches" else rest for term in terms}
    if share is None:
        shares = dict.fromkeys(terms, Estimate(math.nan, None))
        undefined = {"unbiased": math.nan, "biased": math.nan, "biased_if_unrelated": math.nan}
        cka = dict.fromkeys(terms, CkaEstimate(**undefined, ci95=None))
    else:
        shares = {term: estimate(value) for term, value in values.items()}
        cka = {term: make_cka(value) for term, value in values.items()}
    constant = "output" if share is None else None
    return replace(
        layer,
        index=index,
        variance_share={**layer.variance_share, "residual": shares},
        cka={**layer.cka, "residual": cka},
        verdict=judge(cka, shares, n, constant),
    )


def write_result(folder, summary, columns=None, **provenance):
    """Write a result to a folder."""
    folder.mkdir(parents=True)
    if columns is not None:
        pq.write_table(pa.table(columns), folder / "images.parquet")
    (folder / "provenance.json").write_text(json.dumps({"weights_hash": "abc123"} | provenance))
    write_summary(folder, summary)
    return folder


def write_all(root, families=None, **settings):
    """Write audits and one-shot results for every size of some families."""
    for family in families or FAMILIES:
        for size, params in FAMILIES[family].items():
            registers = 4 if "registers" in family else 0
            name = f"{family}-{size}".replace("/", "-").replace(" ", "-")
            audit = make_audit(family, size, params, registers=registers, **settings)
            write_result(root / "audits" / name, *audit)
            one_shot = make_one_shot(family, size, params, registers=registers)
            write_result(root / "one-shot" / name, one_shot)
    return root
