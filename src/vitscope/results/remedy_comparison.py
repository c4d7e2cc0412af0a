"""Two audits of the same images, before and after an edit of the model: paired differences."""

from collections.abc import Iterator
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.tensor_files import read_tensors
from vitscope.ledger import cosine
from vitscope.metrics.agreement import compare_features, share_neighbours
from vitscope.metrics.jackknife import (
    Replicates,
    block_of,
    replicate_mean,
)
from vitscope.metrics.rank_correlation import correlate_ranks
from vitscope.results.audit_result import AuditResult
from vitscope.results.merging import read_ids
from vitscope.results.records import shard_paths
from vitscope.results.schema import AuditSummary
from vitscope.results.schema_remedies import Change, Drift, HighNormReference, MapChange
from vitscope.results.verdict import MIN_IMAGES, judge_image

NUM_NEIGHBOURS = 10
MOST_COMPARED = 4096
"""Images among which neighbours are found, at most: the work grows with their square."""

_GROUPS = ("patches", "registers", "cls")
_SPREAD = ("largest_patch_attention", "attention_entropy")


def compare_audits(before: AuditResult, after: AuditResult) -> dict[str, Change]:
    """Every number of the comparison, by name.

    A group that one of the models does not have contributes 0 there. Numbers that audits of earlier
    versions lack are left out.

    Raises:
        ResultError: If the audits are not of the same images in the same order.
    """
    blocks = _read_blocks(before, after)
    found: dict[str, tuple[Replicates, Replicates]] = {}
    for number, column in (
        ("patch_share", "patch_share"),
        *((f"attention_{group}", f"attention_mass_{group}") for group in _GROUPS),
        ("restricted_cosine", "restricted_cosine_attention_patches"),
    ):
        first, second = (_read_column(result, column) for result in (before, after))
        if first is not None or second is not None:
            found[number] = (_replicate(first, blocks), _replicate(second, blocks))
    high = find_high_norm(before.summary) or find_high_norm(after.summary)
    if high is not None:
        name = f"highest_patch_norm_{high.depth:02d}"
        columns = (_read_column(result, name) for result in (before, after))
        above = [(column >= high.threshold) * 1.0 for column in columns if column is not None]
        found["high_norm_images"] = (_replicate(above[0], blocks), _replicate(above[1], blocks))
        found |= _compare_high_norm(before, after, high.depth)
    of_images = {number: [_read_column(r, number) for r in (before, after)] for number in _SPREAD}
    of_images["norm_ratio"] = [_read_norm_ratio(result) for result in (before, after)]
    for number, (first, second) in of_images.items():
        if first is not None and second is not None:
            found[number] = (_replicate(first, blocks), _replicate(second, blocks))
    found["cka_patches"] = (_replicate_cka(before), _replicate_cka(after))
    terms = dict.fromkeys(
        chain(*(result.summary.last.variance_share["residual"] for result in (before, after)))
    )
    for term in terms:
        if term not in {"bias", "non_patch"}:
            shares = (_replicate_share(before, term), _replicate_share(after, term))
            found[f"variance_share_{term}"] = shares
    return {
        name: Change(
            before=first.estimate(),
            after=second.estimate(),
            difference=(second - first).estimate(),
        )
        for name, (first, second) in found.items()
    }


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
    blocks = _read_blocks(before, after)
    features = [torch.cat(list(_iter_rows(each, "embedding/full"))) for each in (before, after)]
    first, second = (rows.double() for rows in features)
    # Evenly spaced: neighbouring images may be of one class.
    drawn = np.linspace(0, len(blocks) - 1, min(len(blocks), MOST_COMPARED)).round().astype(int)
    shared = share_neighbours(first[drawn], second[drawn], NUM_NEIGHBOURS).numpy()
    return Drift(
        cosine=_replicate(cosine(first, second).numpy(), blocks).estimate(at_most=1.0),
        cka=compare_features(features[0], features[1], blocks.tolist()),
        shared_neighbours=_replicate(shared, blocks[drawn]).estimate(at_most=1.0),
        num_neighbours=NUM_NEIGHBOURS,
        num_images=len(shared),
    )


def compare_maps(before: AuditResult, after: AuditResult) -> MapChange:
    """How far the attention maps of the images moved, and their verdicts with them."""
    blocks, results = _read_blocks(before, after), (before, after)
    correlation = changed = None
    # Audits of earlier versions have neither this number nor the maps.
    if all(_read_column(result, "attention_entropy") is not None for result in results):
        maps = (chain.from_iterable(_iter_maps(result)) for result in results)
        found = [correlate_ranks(first, second).rho for first, second in zip(*maps, strict=True)]
        correlation = _replicate(np.array(found), blocks).estimate(at_most=1.0)
    if len(blocks) >= MIN_IMAGES:
        verdicts, theirs = map(_judge_images, results)
        changed = _replicate((verdicts != theirs) * 1.0, blocks).estimate(at_most=1.0)
    return MapChange(correlation=correlation, verdicts=changed)


def _read_blocks(before: AuditResult, after: AuditResult) -> np.ndarray:
    ids, theirs = (read_ids(result.folder).to_pylist() for result in (before, after))
    if ids != theirs:
        raise ResultError(
            f"{after.folder} is of other images than {before.folder}, or in another order: "
            "compare audits of the same images"
        )
    return np.array([block_of(image_id) for image_id in ids])


def _compare_high_norm(
    before: AuditResult, after: AuditResult, headline: int
) -> dict[str, tuple[Replicates, Replicates]]:
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


def _read_norm_ratio(result: AuditResult) -> np.ndarray | None:
    # At the input of the audited block.
    depth = f"{result.summary.layer:02d}"
    highest = _read_column(result, f"highest_patch_norm_{depth}")
    median = _read_column(result, f"median_patch_norm_{depth}")
    return None if highest is None or median is None else highest / median


def _judge_images(result: AuditResult) -> np.ndarray:
    # The verdicts that `explain` gives with the audit as reference.
    shares = _read_column(result, "centred_share_patches")
    assert shares is not None  # features were kept
    judged = (judge_image({"patches": share}, len(shares), "") for share in shares.tolist())
    return np.array([verdict.status for verdict in judged])


def _read_column(result: AuditResult, name: str) -> np.ndarray | None:
    table = result.images
    return table[name].to_numpy() if name in table.column_names else None


def _replicate(values: np.ndarray | None, blocks: np.ndarray) -> Replicates:
    return replicate_mean(np.zeros(len(blocks)) if values is None else values, blocks.tolist())


def _replicate_cka(result: AuditResult) -> Replicates:
    return result.read_sums()[result.summary.layer].replicate_cka("residual", "patches")


def _replicate_share(result: AuditResult, term: str) -> Replicates:
    sums = result.read_sums()[result.summary.layer]
    if term in sums.plan.shares["residual"]:
        return sums.replicate_share("residual", term)
    whole = sums.replicate_share("residual", "patches")
    return Replicates(0.0, (0.0,) * len(whole.sizes), whole.sizes)


def _iter_maps(result: AuditResult) -> Iterator[np.ndarray]:
    return (rows.double().numpy() for rows in _iter_rows(result, "patch_attention"))


def _iter_rows(result: AuditResult, name: str) -> Iterator[Tensor]:
    for path in shard_paths(result.folder, result.summary.layer):
        tensors, _ = read_tensors(path, [name])
        yield tensors[name]
