"""Summary of an audit: every number over the images, from its tables and sums."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float64
from torch import Tensor

from vitscope.files.reading import open_table, plain_damage
from vitscope.files.tensor_files import read_tensors
from vitscope.ledger import ScalarPath, cosine
from vitscope.metrics.distribution import compute_distribution
from vitscope.metrics.estimates import HighNormTokens, TokenSummary
from vitscope.metrics.feature_plan import FeaturePlan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import Estimate, block_of, replicate
from vitscope.metrics.rank_correlation import correlate_ranks, correlate_several
from vitscope.metrics.regression import regress
from vitscope.metrics.sums import AuditSums
from vitscope.results.manifest import Manifest
from vitscope.results.records import column_name, replace_columns, shard_paths
from vitscope.results.saved_result import concat_tables, read_table, write_table
from vitscope.results.schema import AuditLedger, AuditSummary, DataSummary, Settings
from vitscope.results.schema_numbers import (
    Anatomy,
    CovariateSummary,
    DominantRegister,
    Interdependence,
    LayerSummary,
    PerImage,
    TraceSummary,
    nest,
)
from vitscope.results.verdict import Constant, Verdict, judge, qualify
from vitscope.results.vocabulary import PER_IMAGE

ERRORS = ("balance_error", "residual_error", "block_error", "embedding_error")
_MIN_IMAGES_FRACTION = 0.5
_COVARIATE = "covariate_"
_SOURCES = ("patches", "registers", "skip")
_TRACED = "traced.parquet"
_NO_SHARES = ("image_id", "total", "gap", "through_values", "through_routing")


def summarize(
    manifest: Manifest,
    sums: AuditSums,
    tables: Mapping[int, Path],
    data: DataSummary,
    trace: TraceSummary | None,
) -> AuditSummary:
    """The summary of an audit, from its tables by layer and its sums."""
    last = tables[manifest.last_layer]
    found = {layer: sums.summarize(layer) for layer in tables}
    norms = tuple(found[manifest.last_layer].pop("high_norm_tokens"))
    features = sums.find(FeatureSums)
    similarities = (n for n in pq.read_schema(last).names if n.startswith("layer_similarity_"))
    layers = []
    for layer, table in tables.items():
        # A block's input is the output of the one before it.
        tokens = found[layer].pop("tokens", None)
        anatomy = None if tokens is None else _summarize_anatomy(table, tokens, norms[layer])
        verdict = _judge_layer(features[layer], found[layer], manifest.model.own_output)
        numbers = summarize_images(table) | found[layer]
        layers.append(LayerSummary(index=layer, verdict=verdict, **numbers, anatomy=anatomy))
    return AuditSummary(
        model=manifest.model,
        settings=Settings(renormalize=manifest.renormalize, cls_term=manifest.cls_term),
        preprocessing=manifest.preprocessing,
        data=data,
        ledger=summarize_errors(tables.values(), manifest.tolerance),
        layers=tuple(layers),
        # cos(x_cls at depth ℓ, x_cls at the last depth), ℓ = 0..L
        layer_similarity=tuple(
            compute_distribution(values) for _, values in iter_columns(last, sorted(similarities))
        ),
        high_norm_tokens=norms,
        trace=trace,
        covariates=_summarize_covariates(last),
        interdependence=_summarize_interdependence(last, layers),
    )


def summarize_images(table: Path) -> dict[str, Any]:
    """Distributions of one layer's per-image numbers, as the fields of `PerImage`."""
    names = (field.name for field in fields(PerImage))
    paths = {column_name(path): path for key in names for path in PER_IMAGE[key].list_paths(key)}
    return nest(
        {paths[name]: compute_distribution(values) for name, values in iter_columns(table, paths)}
    )


def _judge_layer(sums: FeatureSums, found: Mapping[str, Any], own_output: str) -> Verdict:
    cka, shares = found["cka"]["residual"], found["variance_share"]["residual"]
    output, patches = sums.plan.comparisons["residual"]["patches"]
    constant: Constant | None = "patches" if sums.is_constant(patches) else None
    if sums.is_constant(output):
        constant = "output"
    return qualify(judge(cka, shares, sums.num_images, constant), own_output)


def summarize_errors(tables: Iterable[Path], tolerance: float) -> AuditLedger:
    """Largest error of each check, over all layers and verified images."""
    worst: dict[str, float] = {}
    num_verified: list[int] = []
    for table in tables:
        for name, values in iter_columns(table, ERRORS):
            # `fmax` ignores NaN.
            before = worst.get(f"max_{name}", math.nan)
            worst[f"max_{name}"] = float(np.fmax.reduce(values, initial=before))
        num_verified.append(int(np.isfinite(read_column(table, "balance_error")).sum()))
    return AuditLedger(**worst, tolerance=tolerance, num_verified=min(num_verified))


def read_column(table: Path, name: str) -> np.ndarray:
    """One column of numbers."""
    return dict(iter_columns(table, [name]))[name]


def iter_columns(table: Path, names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Columns of numbers that there are, one after the other, with their names."""
    with open_table(table) as file:
        known = set(file.schema_arrow.names)
        for name in filter(known.__contains__, names):
            yield name, file.read(columns=[name]).column(name).to_numpy().astype(np.float64)


def add_centred_numbers(folder: Path, table: Path, layer: int, sums: FeatureSums) -> None:
    """Second pass over the kept features, once the means over all images are known.

    Adds to the layer's table cos(c − mean c, t − mean t), the same with r, and each image's centred
    share ⟨c − mean c, r − mean r⟩ / ‖r − mean r‖². Does nothing if features were dropped.
    """
    shards = shard_paths(folder, layer)
    if not shards:
        return
    plan = sums.plan
    totals = {"attention": "attention/full", "residual": "residual/full"}
    parts = {
        "attention": {term: pair[1] for term, pair in plan.shares["attention"].items()},
        "residual": {term: pair[1] for term, pair in plan.comparisons["residual"].items()},
    }
    names = {*totals.values(), *(name for group in parts.values() for name in group.values())}
    means = {name: sums.compute_mean(name) for name in names}
    kept = sorted({part for name in names for part in plan.sums[name]})

    def numbers_of(shard: Path) -> dict[ScalarPath, Tensor]:
        rows, _ = read_tensors(shard, kept)
        centred = {name: _centre(rows, plan, name, mean) for name, mean in means.items()}
        numbers: dict[ScalarPath, Tensor] = {
            ("centred_cosine", total, term): cosine(centred[name], centred[totals[total]])
            for total, terms in parts.items()
            for term, name in terms.items()
        }
        r = centred["residual/full"]
        for term, (_, name) in plan.shares["residual"].items():
            # A constant term is 0 after centring, and so is its share.
            written = centred[name].nan_to_num(nan=0.0)
            numbers["centred_share", term] = (written * r).sum(dim=1) / (r * r).sum(dim=1)
        return numbers

    replace_columns(table, (numbers_of(shard) for shard in shards))


def _centre(rows: Mapping[str, Tensor], plan: FeaturePlan, name: str, mean: Tensor) -> Tensor:
    total = torch.stack([rows[part].double() for part in plan.sums[name]]).sum(dim=0)
    centred = total - mean
    # A centred constant is rounding noise without a meaningful direction.
    noise = 10 * torch.finfo(rows[plan.sums[name][0]].dtype).eps * mean.norm()
    centred[centred.norm(dim=1) <= noise] = math.nan
    return centred


def _summarize_anatomy(
    table: Path, tokens: Mapping[str, TokenSummary], high_norm: HighNormTokens
) -> Anatomy:
    # [CLS], the registers and the highest-norm patch at the input of a block.
    names = {column_name(("token_norm", name)): name for name in (*tokens, "patches")}
    norms = {names[column]: values for column, values in iter_columns(table, names)}
    registers = [name for name in tokens if name.startswith("register_")]
    dominant = _find_dominant(np.stack([norms[n] for n in registers])) if registers else None
    if dominant is not None:
        analysed: str | None = registers[dominant.index]
    else:
        # If few images have outliers, the highest patch is mostly an ordinary one.
        fraction = high_norm.images_fraction
        is_outlier = fraction is not None and fraction >= _MIN_IMAGES_FRACTION
        analysed = "highest_patch" if is_outlier else None
    return Anatomy(
        norms={name: compute_distribution(values) for name, values in norms.items()},
        dominant_register=dominant,
        analysed=analysed,
        tokens=tokens,
    )


def _find_dominant(norms: np.ndarray) -> DominantRegister:
    # One row per register, one column per image.
    counts = np.bincount(norms.argmax(axis=0), minlength=len(norms))
    index = int(counts.argmax())
    others = np.delete(norms, index, axis=0).mean() if len(norms) > 1 else 0.0
    return DominantRegister(
        index=index,
        share=float(counts[index] / counts.sum()),
        counts=tuple(counts.tolist()),
        # There may be no others, or they may be zero in every image.
        ratio=float(norms[index].mean() / others) if others > 0 else math.nan,
    )


def _summarize_covariates(table: Path) -> CovariateSummary:
    # How image properties relate to where the output comes from.
    columns = pq.read_schema(table).names
    covariates = {
        name.removeprefix(_COVARIATE): values
        for name, values in iter_columns(table, [c for c in columns if c.startswith(_COVARIATE)])
    }
    names = [f"{kind}_{source}" for kind in ("share", "centred_share") for source in _SOURCES]
    if "share_registers" in columns:  # Without registers it is 1 for every image.
        names.insert(0, "patch_share")
    targets = dict(iter_columns(table, names))
    ids = read_table(table, "image_id")["image_id"].to_pylist()
    blocks = np.array([block_of(one) for one in ids])
    return CovariateSummary(
        distributions={name: compute_distribution(values) for name, values in covariates.items()},
        correlations={
            name: correlate_several(covariates, target) for name, target in targets.items()
        },
        regressions={name: regress(covariates, target, blocks) for name, target in targets.items()},
    )


def _summarize_interdependence(
    table: Path, layers: Sequence[LayerSummary]
) -> Interdependence | None:
    # Correlation between the registers' and the skip connection's share of the output.
    columns = pq.read_schema(table).names
    kind: Literal["share", "centred_share"] = (
        "centred_share" if "centred_share_skip" in columns else "share"
    )
    names = [f"{kind}_{source}" for source in ("registers", "skip")]
    of_images = dict(iter_columns(table, names))
    if len(of_images) < len(names):
        return None
    shares = [layer.variance_share["residual"] for layer in layers]
    over_layers = correlate_ranks(
        *(np.array([s[source].value for s in shares]) for source in ("registers", "skip"))
    )
    return Interdependence(
        shares=kind,
        over_images=correlate_ranks(*of_images.values()),
        over_layers=over_layers if len(layers) > 1 else None,
    )


def write_traces(folder: Path, table: pa.Table) -> None:
    """Write the traced images: one row each, with lists by depth or block."""
    write_table(folder / _TRACED, table)


def merge_traces(folder: Path, parts: Sequence[Path]) -> None:
    """Combine the traced images of several results."""
    if traced := [part for part in parts if (part / _TRACED).exists()]:
        concat_tables(folder, traced, _TRACED)


def read_traces(folder: Path) -> pa.Table | None:
    """Read the traced images; None if there are none."""
    path = folder / _TRACED
    return read_table(path) if path.exists() else None


def make_rows(
    ids: Sequence[str],
    columns: Mapping[str, Float64[np.ndarray, "image *depth"]],
) -> pa.Table:
    """Rows of the table for some images."""
    lists = {name: pa.array(values.tolist()) for name, values in columns.items()}
    return pa.table({"image_id": pa.array(list(ids), pa.string()), **lists})


def summarize_traces(folder: Path) -> TraceSummary | None:
    """Shares by depth over the traced images; None if there are none.

    A share is Σ_x part(x) / Σ_x total(x) over the images x, so that images whose total is near zero
    do not count more than others.
    """
    table = read_traces(folder)
    if table is None:
        return None
    with plain_damage(folder / _TRACED):
        return _summarize_traced(table)


def _summarize_traced(table: pa.Table) -> TraceSummary:
    total = table["total"].to_numpy()
    blocks = [block_of(image) for image in table["image_id"].to_pylist()]

    def divide(parts: Float64[np.ndarray, " image"]) -> Estimate:
        with np.errstate(invalid="ignore", divide="ignore"):  # without the only block
            ratio = replicate(lambda kept: float(parts[kept].sum() / total[kept].sum()), blocks)
        return ratio.estimate()

    def by_depth(name: str) -> tuple[Estimate, ...]:
        return tuple(map(divide, np.stack(table[name].to_pylist()).T))

    shares = {name: by_depth(name) for name in table.column_names if name not in _NO_SHARES}
    below_half = (depth for depth, one in enumerate(shares["patches"]) if one.value < 0.5)
    return TraceSummary(
        num_images=table.num_rows,
        max_gap=float(np.max(table["gap"].to_numpy())),
        shares=shares,
        through_values=by_depth("through_values"),
        through_routing=by_depth("through_routing"),
        half_depth=next(below_half, None),
    )
