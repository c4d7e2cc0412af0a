"""Made-up numbers of a layer and of all depths, as `made_results` puts them into summaries."""

import numpy as np

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
from vitscope.metrics.rank_correlation import AdjustedCorrelation
from vitscope.metrics.regression import Regression
from vitscope.results.schema_numbers import (
    Anatomy,
    CovariateSummary,
    DominantRegister,
    LayerSummary,
    TraceSummary,
)
from vitscope.results.verdict import judge

COVARIATES = (
    *("entropy", "edge_density", "colourfulness", "spatial_frequency", "saliency_concentration"),
    *("num_segments", "largest_segment", "mean_segment"),
)


def estimate(value, half=0.02):
    return Estimate(value, (value - half, value + half))


def distribution(values):
    return compute_distribution(np.asarray(values, dtype=np.float64))


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
