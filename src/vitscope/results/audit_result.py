"""The saved result of an audit: a folder from which everything is drawn, without a model."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa

from vitscope.errors import UsageError
from vitscope.files.reading import plain_damage
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.sums import AuditSums
from vitscope.metrics.token_sums import TokenSums
from vitscope.results.finishing import finish_result, merge_parts, read_ids
from vitscope.results.gallery import Gallery, merge_galleries, read_gallery
from vitscope.results.manifest import Manifest, read_manifest, read_sums
from vitscope.results.mergeable import MergeableResult, check_disjoint, check_same
from vitscope.results.saved_result import IMAGES, saved_summary
from vitscope.results.schema import AuditSummary
from vitscope.results.summary import merge_traces


class AuditResult(MergeableResult):
    """An audit on disk: read access to its files."""

    _table_file = IMAGES
    summary = saved_summary(AuditSummary)
    """Every number over the images; `ResultError` if it is damaged or of another kind."""

    def __str__(self) -> str:
        return f"{self.summary.model.id}: {self.summary.last.verdict.text}"

    @property
    def manifest(self) -> Manifest:
        """What was audited, and how.

        Raises:
            ResultError: If the sums cannot be read.
        """
        _ = self.summary  # raises if another version wrote the result
        return read_manifest(self.folder)

    @property
    def images(self) -> pa.Table:
        """One row per image, for the last layer.

        Raises:
            ResultError: If the table cannot be read.
        """
        return self._table

    @property
    def gallery(self) -> Gallery | None:
        """The images kept with their maps; None if there are none."""
        return read_gallery(self.folder, owner=self)

    def read_sums(self) -> dict[int, FeatureSums]:
        """Sums over the [CLS] row, from which the estimates were computed.

        Returns:
            Sums by layer.
        """
        found = self._read_all_sums().find(FeatureSums)
        for sums in found.values():
            sums.owner = self
        return found

    def read_token_sums(self) -> dict[int, TokenSums]:
        """The sums over the special tokens.

        Returns:
            Sums by layer; empty for a model without [CLS].
        """
        return self._read_all_sums().find(TokenSums)

    def read_patch_norms(self) -> PatchNormCounts:
        """Counts of patch tokens by depth, place on the grid and norm.

        Returns:
            The counts.
        """
        (counts,) = self._read_all_sums().find(PatchNormCounts).values()
        return counts

    def high_norm_grid(self, depth: int) -> np.ndarray:
        """How often each place on the patch grid held a high-norm token.

        Args:
            depth: 0 for the embeddings, ℓ for the output of the ℓ-th block.

        Returns:
            Fraction of the images, as (rows, columns); NaN at a depth without high-norm tokens.

        Raises:
            UsageError: If the model has no such depth, or norms there are known for some images
                only.
        """
        counts = self.read_patch_norms()
        if not 0 <= depth < counts.num_depths:
            raise UsageError(
                f"depth {depth}: expected 0 (embeddings) to {counts.num_depths - 1} (the last "
                "block's output)"
            )
        known, everything = counts.num_images(depth), self.summary.data.num_images
        if known < everything:
            raise UsageError(
                f"depth {depth} is known of {known} of {everything} images, those in which the "
                "ledger was verified: audit with verified=1"
            )
        with plain_damage(self.folder):
            return counts.frequency_of_outliers(depth).reshape(self.summary.model.grid)

    @classmethod
    def _merge_into(cls, folder: Path, results: Sequence[Self]) -> None:
        folders = [result.folder for result in results]
        manifest = results[0].manifest
        for other in results[1:]:
            check_same(other.folder, manifest.describe_same(), other.manifest.describe_same())
            manifest.check_same_model(other.folder, other.manifest)
        provenances = [result.provenance for result in results]
        with plain_damage(*folders):  # any of them may be the damaged one
            check_disjoint(folders, list(map(read_ids, folders)))
            sums, failures = merge_parts(folder, manifest, folders)
            merge_traces(folder, folders)
            provenance = {"merged_from": provenances}
            finish_result(folder, manifest, sums, failures=failures, provenance=provenance)
            merge_galleries(folder, folders)

    def _read_all_sums(self) -> AuditSums:
        # Metrics of other packages are left out: a result is read without these packages.
        return read_sums(self.folder, replace(self.manifest, metrics={}))
