"""Two audits, one-shot results or judgements of the same images, before and after an edit."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.tensor_files import read_tensors
from vitscope.ledger import cosine
from vitscope.metrics.agreement import compare_features, share_neighbours
from vitscope.metrics.jackknife import replicate_mean
from vitscope.metrics.one_shot import average_draws
from vitscope.metrics.rank_correlation import correlate_ranks
from vitscope.results.audit_result import AuditResult
from vitscope.results.judge_result import JudgeResult
from vitscope.results.map_verdict import BASELINES, replicate_skill
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.paired_audits import Pair, ReplicatedAudit, make_changes, pair_audits
from vitscope.results.records import shard_paths
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_remedies import (
    Change,
    ClassifiedImages,
    Drift,
    HighNormReference,
    JudgedImages,
    MapChange,
)
from vitscope.results.verdict import MIN_IMAGES, judge_image

NUM_NEIGHBOURS = 10
MOST_COMPARED = 4096
"""Images among which neighbours are found, at most: the work grows with their square."""

_IS_READ = (pc.field("readout") == "embedding") & (pc.field("classifier") == "nearest")
"""The global feature is classified, which is what a user of the model gets."""

_SPREAD = ("largest_patch_attention", "attention_entropy")


def compare_audits(before: AuditResult, after: AuditResult) -> dict[str, Change]:
    """Every number of the comparison of audits of the same images in the same order, by name."""
    both = _open_pair(before, after)
    found = pair_audits(*both)
    high = find_high_norm(before.summary) or find_high_norm(after.summary)
    if high is not None:
        name = f"highest_patch_norm_{high.depth:02d}"
        columns = (audit.read_column(name) for audit in both)
        above = [(column >= high.threshold) * 1.0 for column in columns if column is not None]
        found["high_norm_images"] = (both[0].replicate(above[0]), both[1].replicate(above[1]))
        found |= _compare_high_norm(before, after, high.depth)
    layers = (before.summary.layer, after.summary.layer)
    of_images = {number: [audit.read_column(number) for audit in both] for number in _SPREAD}
    of_images["norm_ratio"] = list(map(_read_norm_ratio, both, layers))
    for number, (first, second) in of_images.items():
        if first is not None and second is not None:
            found[number] = (both[0].replicate(first), both[1].replicate(second))
    return make_changes(found)


def find_high_norm(summary: AuditSummary) -> HighNormReference | None:
    """The depth with most high-norm patches, and their threshold; None without any."""
    known = [
        (tokens.fraction, depth, tokens.threshold)
        for depth, tokens in enumerate(summary.high_norm_tokens)
        if tokens.threshold is not None and tokens.fraction is not None
    ]
    if not known:
        return None
    _, depth, threshold = max(known)
    return HighNormReference(depth=depth, threshold=threshold)


def measure_drift(before: AuditResult, after: AuditResult) -> Drift:
    """How far the global feature moved, from the features that both audits kept."""
    audit, _ = _open_pair(before, after)
    features = [torch.cat(list(_iter_rows(each, "embedding/full"))) for each in (before, after)]
    first, second = (rows.double() for rows in features)
    # Evenly spaced: neighbouring images may be of one class.
    count = len(audit.blocks)
    drawn = np.linspace(0, count - 1, min(count, MOST_COMPARED)).round().astype(int)
    shared = share_neighbours(first[drawn], second[drawn], NUM_NEIGHBOURS).numpy()
    blocks = [audit.blocks[place] for place in drawn]
    return Drift(
        cosine=audit.replicate(cosine(first, second).numpy()).estimate(at_most=1.0),
        cka=compare_features(features[0], features[1], audit.blocks),
        shared_neighbours=replicate_mean(shared, blocks).estimate(at_most=1.0),
        num_neighbours=NUM_NEIGHBOURS,
        num_images=len(shared),
    )


def compare_maps(before: AuditResult, after: AuditResult) -> MapChange:
    """How far the attention maps of the images moved, and their verdicts with them."""
    both = _open_pair(before, after)
    audit, _ = both
    correlation = changed = None
    # Audits of earlier versions have neither this number nor the maps.
    if all(one.read_column("attention_entropy") is not None for one in both):
        shards = (_iter_rows(result, "patch_attention") for result in (before, after))
        maps = zip(*map(chain.from_iterable, shards), strict=True)
        found = [
            correlate_ranks(first.double().numpy(), second.double().numpy()).rho
            for first, second in maps
        ]
        correlation = audit.replicate(np.array(found)).estimate(at_most=1.0)
    if len(audit.blocks) >= MIN_IMAGES:
        verdicts, theirs = map(_judge_images, both)
        changed = audit.replicate((verdicts != theirs) * 1.0).estimate(at_most=1.0)
    return MapChange(correlation=correlation, verdicts=changed)


def _open_pair(before: AuditResult, after: AuditResult) -> tuple[ReplicatedAudit, ReplicatedAudit]:
    first, second = ReplicatedAudit(before), ReplicatedAudit(after)
    if first.ids != second.ids:
        raise ResultError(
            f"{after.folder} is of other images than {before.folder}, or in another order: "
            "compare audits of the same images"
        )
    return first, second


def _compare_high_norm(before: AuditResult, after: AuditResult, headline: int) -> dict[str, Pair]:
    # At each depth, the original's threshold for both, or else that of the edited model, which may
    # have such patches where the original has none.
    counts = [result.read_patch_norms() for result in (before, after)]
    both = (result.summary.high_norm_tokens for result in (before, after))
    found = {}
    for depth, (own, new) in enumerate(zip(*both, strict=True)):
        threshold = new.threshold if own.threshold is None else own.threshold
        if threshold is not None:
            first, second = (one.replicate_fraction(depth, threshold) for one in counts)
            if first is not None and second is not None:
                at = "" if depth == headline else f"_{depth:02d}"
                found[f"high_norm_patches{at}"] = (first, second)
    return found


def _read_norm_ratio(audit: ReplicatedAudit, layer: int) -> np.ndarray | None:
    # At the input of the audited block.
    highest = audit.read_column(f"highest_patch_norm_{layer:02d}")
    median = audit.read_column(f"median_patch_norm_{layer:02d}")
    return None if highest is None or median is None else highest / median


def _judge_images(audit: ReplicatedAudit) -> np.ndarray:
    # The verdicts that `explain` gives with the audit as reference.
    shares = audit.read_column("centred_share_patches")
    assert shares is not None  # features were kept
    judged = (judge_image({"patches": share}, len(shares), "") for share in shares.tolist())
    return np.array([verdict.status for verdict in judged])


def _iter_rows(result: AuditResult, name: str) -> Iterator[Tensor]:
    for path in shard_paths(result.folder, result.summary.layer):
        tensors, _ = read_tensors(path, [name])
        yield tensors[name]


def describe_classified(result: OneShotResult) -> ClassifiedImages:
    """What was classified."""
    summary = result.summary
    return ClassifiedImages(
        num_images=summary.data.num_images,
        num_classes=summary.data.num_classes,
        draws=summary.draws,
        chance=summary.chance,
    )


def describe_judged(result: JudgeResult) -> JudgedImages:
    """What was judged; baselines are no maps of the model."""
    summary = result.summary
    return JudgedImages(
        num_images=summary.data.num_images,
        target=summary.target,
        removal=next(iter(summary.removals)),
        maps={name: one.title for name, one in summary.maps.items() if name not in BASELINES},
    )


def compare_one_shots(before: OneShotResult, after: OneShotResult) -> dict[str, Change]:
    """Accuracies of the global feature, and of that from patches alone, paired by draw.

    A draw has the same training and test images before and after; the classifier is trained on
    each model's own full feature.
    """
    if before.provenance.get("drawn") != after.provenance.get("drawn"):
        raise ResultError(
            f"{printable_path(after.folder)} drew other images than "
            f"{printable_path(before.folder)}: compare one-shot results of the same images and seed"
        )
    found = {}
    both = [result.draws.filter(_IS_READ).to_pylist() for result in (before, after)]
    for part in ("full", "patches"):
        for top in ("top1", "top5"):
            old, new = (
                np.array([row[top] for row in rows if row["part"] == part]) for rows in both
            )
            found[f"{part}_{top}"] = Change(
                before=average_draws(old),
                after=average_draws(new),
                difference=average_draws(new - old, at_least=-1.0),
            )
    return found


def compare_judgements(before: JudgeResult, after: JudgeResult) -> dict[str, Change]:
    """Skill of the maps that both models have, paired by image.

    Each model's maps explain its own target and are measured on its own outputs.
    """
    (ids, first), (theirs, second) = before.read_gaps(), after.read_gaps()
    if ids != theirs:
        raise ResultError(
            f"{printable_path(after.folder)} is of other images than "
            f"{printable_path(before.folder)}: compare judgements of the same images"
        )
    return make_changes(
        {
            name: (replicate_skill(first, name, ids), replicate_skill(second, name, ids))
            for name in first
            if name in second and name not in BASELINES
        }
    )
