"""Numbers of two audits of the same images, and their paired differences."""

from collections.abc import Mapping, Set
from dataclasses import replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.reading import plain_damage
from vitscope.files.tensor_files import read_tensors
from vitscope.metrics.feature_plan import FeaturePlan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import Replicates, block_of, replicate_mean
from vitscope.metrics.sums import Batch
from vitscope.results.audit_result import AuditResult
from vitscope.results.records import shard_paths
from vitscope.results.schema_remedies import Change

_MEANS = {
    "patch_share": "patch_share",
    **{
        f"attention_{group}": f"attention_mass_{group}" for group in ("patches", "registers", "cls")
    },
    "restricted_cosine": "restricted_cosine_attention_patches",
}
"""Columns of the table of images, by the name of the number that is their mean."""

Pair = tuple[Replicates, Replicates]


class ReplicatedAudit:
    """Numbers of an audit's headline layer, and the same without each block of images."""

    def __init__(self, result: AuditResult, only: Set[str] | None = None) -> None:
        """Files are read when a number is asked for; `only` are the images that count."""
        self._result = result
        self._only = only

    def among(self, ids: Set[str]) -> "ReplicatedAudit":
        """The same of those images alone that are among `ids`."""
        return self if ids >= set(self.ids) else ReplicatedAudit(self._result, ids)

    @cached_property
    def ids(self) -> list[str]:
        """Identities of the images."""
        found: list[str] = self._table["image_id"].to_pylist()
        return found

    @cached_property
    def blocks(self) -> list[int]:
        """Block of each image."""
        return list(map(block_of, self.ids))

    @property
    def has_sums(self) -> bool:
        """Whether CKA and variance shares are known: of a part of the images, from features."""
        return self._only is None or bool(self._shards)

    def read_column(self, name: str) -> np.ndarray | None:
        """A number of each image; None if the audit does not have it."""
        return self._table[name].to_numpy() if name in self._table.column_names else None

    def replicate(self, values: np.ndarray | None) -> Replicates:
        """The mean of a number that each image has; 0 without any, as of a group without tokens."""
        return replicate_mean(np.zeros(len(self.ids)) if values is None else values, self.blocks)

    def replicate_cka(self) -> Replicates:
        """CKA(r, patches)."""
        return self._sums.replicate_cka("residual", "patches")

    def replicate_share(self, term: str) -> Replicates:
        """The variance share of a term; 0 if the model does not have it."""
        if term in self._sums.plan.shares["residual"]:
            return self._sums.replicate_share("residual", term)
        whole = self._sums.replicate_share("residual", "patches")
        return Replicates(0.0, (0.0,) * len(whole.sizes), whole.sizes)

    @cached_property
    def _everything(self) -> pa.Table:
        return self._result.images

    @cached_property
    def _counts(self) -> np.ndarray:
        # Whether each image of the audit counts.
        ids = self._everything["image_id"].to_pylist()
        return np.array([self._only is None or one in self._only for one in ids])

    @cached_property
    def _table(self) -> pa.Table:
        return self._everything.filter(pa.array(self._counts))

    @property
    def _shards(self) -> list[Path]:
        return shard_paths(self._result.folder, self._result.summary.layer)

    @cached_property
    def _sums(self) -> FeatureSums:
        layer = self._result.summary.layer
        return self._result.read_sums()[layer] if self._only is None else self._sum_features(layer)

    def _sum_features(self, layer: int) -> FeatureSums:
        # Saved sums do not say which image is which; kept features are in the table's order.
        manifest = self._result.manifest
        plan = _take_residual(manifest.make_plan(layer))
        sums = FeatureSums(plan, getattr(torch, manifest.dtype))
        counts, blocks = self._counts, iter(self.blocks)
        folder = printable_path(self._result.folder)
        damage = ResultError(
            f"{folder} is damaged (its table does not match its features): audit again"
        )
        with plain_damage(self._result.folder):
            for shard in self._shards:
                rows, _ = read_tensors(shard, plan.kept)
                here, counts = np.split(counts, [len(rows[plan.kept[0]])])
                if any(len(one) != len(here) for one in rows.values()):
                    raise damage
                chosen = torch.from_numpy(here.nonzero()[0])
                if len(chosen):
                    features = {name: one[chosen] for name, one in rows.items()}
                    sums.update(Batch(features, list(islice(blocks, len(chosen)))))
        if len(counts):  # a shard is missing
            raise damage
        return sums

    @property
    def terms(self) -> list[str]:
        """Terms of the residual stream whose shares add up to 1."""
        shares = self._result.summary.last.variance_share["residual"]
        return [term for term in shares if term not in {"bias", "non_patch"}]


def _take_residual(plan: FeaturePlan) -> FeaturePlan:
    # What the paired numbers need.
    patches = plan.comparisons["residual"]["patches"]
    return replace(
        plan,
        kept=plan.sums["residual/full"],
        comparisons={"residual": {"patches": patches}},
        shares={"residual": plan.shares["residual"]},
        gram={},
    )


def pair_audits(first: ReplicatedAudit, second: ReplicatedAudit) -> dict[str, Pair]:
    """What any two audits of the same images have in common, by name.

    A group that one of the models does not have contributes 0 there. Numbers that audits of earlier
    versions lack are left out, and CKA and variance shares of a part of the images whose features
    were dropped.
    """
    both = (first, second)
    found: dict[str, Pair] = {}
    for number, column in _MEANS.items():
        values = [audit.read_column(column) for audit in both]
        if any(one is not None for one in values):
            found[number] = (first.replicate(values[0]), second.replicate(values[1]))
    if not all(audit.has_sums for audit in both):
        return found
    found["cka_patches"] = (first.replicate_cka(), second.replicate_cka())
    for term in dict.fromkeys(chain(first.terms, second.terms)):
        shares = (first.replicate_share(term), second.replicate_share(term))
        found[f"variance_share_{term}"] = shares
    return found


def make_changes(pairs: Mapping[str, Pair]) -> dict[str, Change]:
    """Numbers before and after, with their paired differences."""
    return {
        name: Change(
            before=first.estimate(),
            after=second.estimate(),
            difference=(second - first).estimate(),
        )
        for name, (first, second) in pairs.items()
    }
