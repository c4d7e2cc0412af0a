"""Numbers of two audits of the same images, and their paired differences."""

from collections.abc import Mapping
from functools import cached_property
from itertools import chain

import numpy as np
import pyarrow as pa

from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import Replicates, block_of, replicate_mean
from vitscope.results.audit_result import AuditResult
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
    """Numbers of the headline layer of an audit, and the same without each block of images."""

    def __init__(self, result: AuditResult) -> None:
        """Files are read when a number is asked for."""
        self._result = result

    @cached_property
    def ids(self) -> list[str]:
        """Identities of the images."""
        found: list[str] = self._table["image_id"].to_pylist()
        return found

    @cached_property
    def blocks(self) -> list[int]:
        """Block of each image."""
        return list(map(block_of, self.ids))

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
    def _table(self) -> pa.Table:
        return self._result.images

    @cached_property
    def _sums(self) -> FeatureSums:
        return self._result.read_sums()[self._result.summary.layer]

    @property
    def terms(self) -> list[str]:
        """Terms of the residual stream whose shares add up to 1."""
        shares = self._result.summary.last.variance_share["residual"]
        return [term for term in shares if term not in {"bias", "non_patch"}]


def pair_audits(first: ReplicatedAudit, second: ReplicatedAudit) -> dict[str, Pair]:
    """What any two audits of the same images have in common, by name.

    A group that one of the models does not have contributes 0 there. Numbers that audits of earlier
    versions lack are left out.
    """
    both = (first, second)
    found: dict[str, Pair] = {}
    for number, column in _MEANS.items():
        values = [audit.read_column(column) for audit in both]
        if any(one is not None for one in values):
            found[number] = (first.replicate(values[0]), second.replicate(values[1]))
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
