"""Made-up results that follow the summary's schema, to draw figures from."""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.figures import ModelResult
from vitscope.metrics.distribution import compute_distribution
from vitscope.metrics.estimates import (
    CkaEstimate,
    Directions,
    GramShare,
    HighNormTokens,
    SharedDirections,
    StateSummary,
    TokenSummary,
    TopDimensions,
)
from vitscope.metrics.jackknife import Estimate
from vitscope.metrics.rank_correlation import AdjustedCorrelation, RankCorrelation
from vitscope.metrics.regression import Regression
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
from vitscope.results.schema_numbers import (
    Anatomy,
    Chance,
    CovariateSummary,
    DominantRegister,
    Interdependence,
    LayerSummary,
    Measured,
    TopAccuracy,
    TraceSummary,
)
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
COVARIATES = (
    *("entropy", "edge_density", "colourfulness", "spatial_frequency", "saliency_concentration"),
    *("num_segments", "largest_segment", "mean_segment"),
)


def estimate(value, half=0.02):
    return Estimate(value, (value - half, value + half))


def distribution(values):
    return compute_distribution(np.asarray(values, dtype=np.float64))


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


def make_layer(index, terms, shares, big, random, n, columns):
    groups = [term for term in terms if term != "skip"]
    norms = {
        "patches": random.normal(30 - 20 * big, 3, n),
        "skip": random.normal(16 + 40 * big, 4, n),
    }
    whole = {term: distribution(random.uniform(0, 1, n)) for term in terms}
    of_groups = {term: whole[term] for term in groups}
    variance_share = {
        "attention": {term: estimate(shares[term]) for term in groups},
        "residual": {term: estimate(shares[term]) for term in terms},
    }
    values = {"patches": 1 - 0.7 * big**2, "registers": 0.1 + 0.7 * big, "cls": 0.1}
    residual = {
        "cls": 0.1,
        "registers": 0.3,
        "patches": 1 - 0.8 * big**2,
        "skip": 0.2 + 0.7 * big**2,
    }
    cka = {
        "attention": {term: make_cka(values[term]) for term in groups},
        "values": {term: make_cka(values[term] - 0.05) for term in groups},
        "residual": {term: make_cka(residual[term]) for term in terms},
    }
    return LayerSummary(
        index=index,
        verdict=judge(cka["residual"], variance_share["residual"], n),
        attention_mass=of_groups,
        patch_share=distribution(columns["patch_share"]),
        contribution_norm={term: distribution(values) for term, values in norms.items()},
        cosine={"attention": of_groups, "residual": whole},
        centred_cosine={"attention": of_groups, "residual": whole},
        restricted_cosine={"attention": of_groups},
        share=whole,
        centred_share=whole,
        variance_share=variance_share,
        cka=cka,
        gram_ledger={
            "attention": make_gram({t: shares[t] for t in groups}),
            "residual": make_gram({t: shares[t] for t in terms}),
        },
        directions=make_directions(terms, random),
        anatomy=make_anatomy("registers" in terms and 4, big, random, n),
    )


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


def make_cka(value, half=0.03):
    value = min(value, 0.99)
    return CkaEstimate(
        unbiased=value,
        ci95=(value - half, value + half),
        biased=min(1.0, value + 0.03),
        biased_if_unrelated=0.12,
    )


def make_gram(shares):
    total = sum(shares.values())
    found = {a: {b: x * y / total**2 for b, y in shares.items()} for a, x in shares.items()}
    return {
        a: {b: GramShare(biased=v, unbiased=v, ci95=(v - 0.01, v + 0.01)) for b, v in row.items()}
        for a, row in found.items()
    }


def make_directions(terms, random):
    pairs = {a: {} for a in terms}
    for i, a in enumerate(terms):
        for b in terms[i + 1 :]:
            angles = np.sort(random.uniform(10, 90, 10)).tolist()
            for one, other in ((a, b), (b, a)):
                pairs[one][other] = SharedDirections(
                    principal_angles_deg=tuple(angles),
                    shared_variance=float(random.uniform(0.05, 0.8)),
                    shared_variance_if_unrelated=0.026,
                )
    ranks = {term: float(random.uniform(3, 60)) for term in terms}
    return Directions(num_directions=10, effective_rank=ranks, pairs=pairs)


def make_anatomy(registers, big, random, n):
    norms = {"cls": 45.0, **{f"register_{i}": 40.0 + 8 * i for i in range(registers)}}
    if registers:
        norms["register_2"] = 60 + 600 * big
    norms |= {"patches": 42.0, "highest_patch": 75.0}
    tokens = {}
    for token in [*(t for t in norms if t != "patches")]:
        base = 0.999 if token == "register_2" else float(random.uniform(0.3, 0.7))
        states = {
            state: StateSummary(
                pairwise_cosine=estimate(base * scale, 0.01),
                variance_share=estimate(1 - base * scale, 0.01),
            )
            for state, scale in (("hidden", 1), ("normed", 0.8), ("keys", 0.7), ("values", 0.5))
        }
        before = np.sort(random.exponential(30 * base, 100))[::-1]
        top = TopDimensions(
            indices=tuple(range(100)),
            before=tuple(before.tolist()),
            after=tuple((0.05 * before + random.normal(0, 0.3, 100)).tolist()),
            median_before=0.0,
            median_after=0.0,
        )
        tokens[token] = TokenSummary(states=states, top_dimensions=top)
    dominant = DominantRegister(index=2, share=0.998, counts=(0, 1, n - 1, 0), ratio=11.3)
    return Anatomy(
        norms={k: distribution(random.normal(v, 0.05 * v, n)) for k, v in norms.items()},
        dominant_register=dominant if registers else None,
        analysed="register_2" if registers else None,
        tokens=tokens,
    )


def make_similarity(depth, big, random, n):
    rows = []
    for layer in range(depth + 1):
        x = layer / depth
        value = (1 - big) * (-0.3 * x * (x < 1) + (x == 1)) + big * x**1.5
        rows.append(distribution(random.normal(value, 0.04 * (x < 1), n)))
    return tuple(rows)


def make_high_norm(depth, big, registers, n):
    rows = []
    for layer in range(depth + 1):
        there = big > 0.6 and not registers and layer > depth / 2
        rows.append(
            HighNormTokens(
                num_images=n,
                threshold=150.0 if there else None,
                fraction=0.02 * big if there else None,
                images_fraction=0.9 if there else None,
                fraction_at_most=None if there else 25 / (256 * n),
                images_fraction_at_most=None if there else 25 / n,
                position_share=0.2 if there else None,
                median=20.0 + 2 * layer,
                p99=40.0 + 3 * layer,
                max=400.0 if there else 50.0 + 3 * layer,
            )
        )
    return tuple(rows)


def make_trace(depth, big, registers, n=50):
    """Patches lose the output to registers and [CLS], in large models at half the depth."""
    stays = [max(0.0, 1 - (level / depth) ** (6 - 5 * big)) for level in range(depth + 1)]
    held = [0.5 * (1 - share) * (level < depth) for level, share in enumerate(stays)]
    shares = {"patches": stays, "registers": held if registers else [0.0] * (depth + 1)}
    rest = zip(stays, shares["registers"], strict=True)
    shares["cls"] = [1 - patches - register for patches, register in rest]
    routes = {"values": 0.3 - 0.2 * big, "routing": 0.1 * big}
    return TraceSummary(
        num_images=n,
        max_gap=1e-6,
        shares={
            group: tuple(map(estimate, values))
            for group, values in shares.items()
            if registers or group != "registers"
        },
        half_depth=next(level for level, share in enumerate(stays) if share < 0.5),
        **{f"through_{name}": (estimate(value),) * depth for name, value in routes.items()},
    )


def make_covariates(terms, random, n):
    targets = ["patch_share"]
    targets += [f"{k}_{t}" for k in ("share", "centred_share") for t in terms if t != "cls"]
    correlations = {}
    for target in targets:
        correlations[target] = {}
        for covariate in COVARIATES:
            rho = float(random.uniform(-0.5, 0.5))
            correlations[target][covariate] = AdjustedCorrelation(
                rho=rho,
                ci95=(rho - 0.1, rho + 0.1),
                p=0.01,
                p_holm=0.001 if abs(rho) > 0.2 else 0.8,
                n=n,
            )
    return CovariateSummary(
        distributions={},
        correlations=correlations,
        regressions={target: Regression(r2=0.12, n=n) for target in targets},
    )


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
