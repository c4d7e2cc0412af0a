"""Mergeable sums behind CKA and variance shares: rows on disk, folded into moments of size d²."""

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.files.storage import staged_folder
from vitscope.metrics import pair_estimates
from vitscope.metrics.directions import describe_directions
from vitscope.metrics.estimates import CkaEstimate, Directions
from vitscope.metrics.feature_plan import FeaturePlan, Pair
from vitscope.metrics.gram_ledger import GramLedger, estimate_gram_ledger
from vitscope.metrics.jackknife import NUM_BLOCKS, Estimate, Replicates
from vitscope.metrics.moments import (
    PairMoments,
    Rows,
    add_rows,
    make_moments,
    shift_moments,
)
from vitscope.metrics.pair_estimates import PairEstimates
from vitscope.metrics.stores import Blocks, MomentStore, RowStore
from vitscope.metrics.sums import Batch

Vector = Float64[Tensor, " dim"]

_FOLD_AT = 4
"""Rows per block and dimension at which rows are folded. From about there, moments are smaller:
about 45 pairs of d² 8-byte numbers, against about 15 features of d 4-byte numbers per row."""

_MOMENTS = "moments"


def rows_before_fold(width: int) -> int:
    """Number of rows kept before they are folded into moments, at least 1."""
    return max(1, _FOLD_AT * width * NUM_BLOCKS)


class FeatureSums:
    """Sums of the [CLS] row's features at one layer, and the estimates from them."""

    name: ClassVar[str] = "features"

    def __init__(
        self, plan: FeaturePlan, dtype: torch.dtype = torch.float32, folder: Path | None = None
    ) -> None:
        """Start with no images; rows and moments go to the folder, a temporary one if None."""
        self.plan = plan
        self.dtype = dtype
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="vitscope-sums-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self._folder = folder
        self._rows = RowStore(folder)
        self._moments: MomentStore | None = None
        self.owner: object = None  # the result, whose temporary folder must outlive them
        self._totals: dict[str, Vector] = {}
        self._reference: dict[str, Vector] = {}
        self._counts = [0] * NUM_BLOCKS
        self._cache: dict[Pair, PairEstimates] = {}

    @property
    def num_images(self) -> int:
        """Images seen."""
        return sum(self._counts)

    def update(self, batch: Batch) -> None:
        """Add a batch; after a `DiskError`, `num_images` shows whether it was added."""
        self._cache.clear()
        kept = {name: batch.features[name] for name in self.plan.kept}
        self._rows.append(kept, batch.blocks)
        for name, rows in kept.items():
            self._add_total(name, rows.sum(dim=0, dtype=torch.float64))
        for block in batch.blocks:
            self._counts[block] += 1
        self._fold_if_full()

    def merge(self, other: "FeatureSums") -> None:
        """Add the sums of a disjoint set of images, whose files of rows are hard-linked."""
        if self.plan != other.plan or self.dtype != other.dtype:
            raise ResultError("these sums have different features and cannot be merged")
        self._cache.clear()
        if other._moments is not None:
            reference = self._reference or other._reference
            self._rewrite_moments(partial(self._add_stored, other, reference), reference)
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        for name, total in other._totals.items():
            self._add_total(name, total)
        self._rows.merge(other._rows)
        self._fold_if_full()

    def compute_mean(self, name: str) -> Vector:
        """Mean of one of the plan's `sums` over all images, in float64."""
        total = torch.stack([self._totals[part] for part in self.plan.sums[name]]).sum(dim=0)
        return total / self.num_images

    def compute_block_moments(self, pair: Pair) -> PairMoments:
        """Stacked moments of a pair in each jackknife block, about a reference near the means."""
        moments = self._read_stored(pair)
        for x, y, blocks in self._iter_shifted(pair):
            in_order = blocks.argsort(stable=True)
            sizes = torch.bincount(blocks, minlength=NUM_BLOCKS).tolist()
            of_x, of_y = (torch.split(rows[in_order], sizes) for rows in (x, y))
            for block in {*blocks.tolist()}:
                add_rows(moments[block], of_x[block], of_y[block])
        return moments

    def estimate_cka(self, readout: str, part: str) -> CkaEstimate:
        """CKA between the full and a restricted output; NaN where one of them does not vary."""
        return pair_estimates.estimate_cka(*self._compare(readout, part))

    def estimate_share(self, total: str, term: str) -> Estimate:
        """Σ ⟨term − mean, total − mean⟩ / Σ ‖total − mean‖²; NaN where the total does not vary."""
        return self.replicate_share(total, term).estimate()

    def replicate_cka(self, readout: str, part: str) -> Replicates:
        """Unbiased CKA between the full and a restricted output, and without each block."""
        return pair_estimates.replicate_cka(*self._compare(readout, part))

    def replicate_share(self, total: str, term: str) -> Replicates:
        """The share of a term in the variance of its total, and without each block."""
        full, part = self.plan.shares[total][term]
        parts, whole = map(self.estimate_pair, ((full, part), (full, full)))
        return pair_estimates.replicate_share(parts, whole)

    def _compare(self, readout: str, part: str) -> Iterator[PairEstimates]:
        full, kept = self.plan.comparisons[readout][part]
        return map(self.estimate_pair, ((full, kept), (full, full), (kept, kept)))

    def estimate_pair(self, pair: Pair) -> PairEstimates:
        """Statistics of a pair, over all images and without one or two blocks."""
        if pair not in self._cache:
            x, y = pair
            reference = self._reference_of(x) if x == y else None
            blocks = self.compute_block_moments(pair)
            # Single images can be left out only while all rows are still there.
            of_gram = any(pair in cells.values() for cells in self.plan.gram.values())
            in_rows = self._moments is None and of_gram
            rows = ((x, y) for x, y, _ in self._iter_shifted(pair)) if in_rows else ()
            self._cache[pair] = pair_estimates.estimate_pair(blocks, reference, self.dtype, rows)
        return self._cache[pair]

    def estimate_gram_ledger(self, total: str) -> GramLedger:
        """Share of each pair of a total's terms in the similarities between images."""
        pairs = {cell: self.estimate_pair(pair) for cell, pair in self.plan.gram[total].items()}
        full = next(iter(self.plan.gram[total].values()))[0]
        return estimate_gram_ledger(pairs, constant=self.is_constant(full))

    def describe_directions(self) -> Directions:
        """Directions in which the terms of r vary over images."""
        pairs = {term: (own, own) for term, (_, own) in self.plan.shares["residual"].items()}
        return describe_directions(
            {term: self.estimate_pair(pair) for term, pair in pairs.items()},
            lambda term: self.compute_block_moments(pairs[term]),
            self.num_images,
        )

    def is_constant(self, feature: str) -> bool:
        """Whether a feature is the same for every image, up to rounding."""
        return self.estimate_pair((feature, feature)).constant

    def save(self) -> dict[str, Tensor]:
        """The tensors to save, in addition to the folder with rows and moments."""
        self._rows.flush()
        tensors = {f"reference/{name}": vector for name, vector in self._reference.items()}
        tensors |= {f"total/{name}": vector for name, vector in self._totals.items()}
        return tensors | {"counts": torch.tensor(self._counts)}

    def load(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Restore saved sums; the saved files are never changed."""
        if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
            raise ValueError("sums of features are not finite")
        self._rows = RowStore(self._folder, saved=folder)
        self._counts = tensors["counts"].tolist()
        if self.num_images:
            self._totals = {name: tensors[f"total/{name}"] for name in self.plan.kept}
        if any(name.startswith("reference/") for name in tensors):
            self._reference = {name: tensors[f"reference/{name}"] for name in self._compared()}
            self._moments = MomentStore(folder / _MOMENTS, self.plan.pairs)
        in_rows = torch.tensor(self._rows.block_sizes)
        for pair in self.plan.pairs:
            folded = 0 if self._moments is None else self._moments.read_counts(pair)
            known = in_rows + folded
            if known.tolist() != self._counts:
                raise KeyError(f"rows of {self.num_images - int(known.sum())} images")

    def summarize(self) -> dict[str, Any]:
        """Variance shares, CKA, Gram ledger and directions, as fields of the layer's summary."""
        return {
            "variance_share": {
                total: {term: self.estimate_share(total, term) for term in terms}
                for total, terms in self.plan.shares.items()
            },
            "cka": {
                readout: {part: self.estimate_cka(readout, part) for part in parts}
                for readout, parts in self.plan.comparisons.items()
            },
            "gram_ledger": {total: self.estimate_gram_ledger(total) for total in self.plan.shares},
            "directions": self.describe_directions(),
        }

    def _add_total(self, name: str, total: Vector) -> None:
        self._totals[name] = self._totals[name] + total if name in self._totals else total

    def _compared(self) -> Iterable[str]:
        return dict.fromkeys(name for pair in self.plan.pairs for name in pair)

    def _sum_parts(self, rows: Mapping[str, Rows], name: str) -> Float64[Tensor, "image dim"]:
        first, *others = self.plan.sums[name]
        total = rows[first].double()
        for part in others:
            total = total + rows[part]
        return total

    def _reference_of(self, name: str) -> Vector:
        return self._reference[name] if self._reference else self.compute_mean(name)

    def _fold_if_full(self) -> None:
        width = max((len(total) for total in self._totals.values()), default=0)
        if len(self._rows) < rows_before_fold(width):
            return
        reference = {name: self._reference_of(name) for name in self._compared()}
        self._rewrite_moments(self.compute_block_moments, reference)
        self._rows.clear()

    def _rewrite_moments(
        self, make: Callable[[Pair], PairMoments], reference: Mapping[str, Vector]
    ) -> None:
        # The old moments stay until all new ones are written.
        home = self._folder / _MOMENTS
        with staged_folder(home, replaces=lambda _: True, durable=False) as staging:
            store = MomentStore(staging, self.plan.pairs)
            for pair in self.plan.pairs:
                store.write(pair, make(pair))
        self._moments = MomentStore(home, self.plan.pairs)
        self._reference = dict(reference)

    def _read_stored(self, pair: Pair) -> PairMoments:
        if self._moments is not None:
            return self._moments.read(pair)
        x, y = (len(self._totals[self.plan.sums[name][0]]) for name in pair)
        return make_moments(x, y, NUM_BLOCKS)

    def _add_stored(
        self, other: "FeatureSums", reference: Mapping[str, Vector], pair: Pair
    ) -> PairMoments:
        theirs = other._read_stored(pair)
        moments = make_moments(*theirs.cross.shape[1:], NUM_BLOCKS)
        if self._moments is not None:
            moments = self._moments.read(pair)
        x, y = (reference[name] - other._reference[name] for name in pair)
        for block in range(NUM_BLOCKS):
            added = moments[block]
            added += shift_moments(theirs[block], x, y)
        return moments

    def _iter_shifted(self, pair: Pair) -> Iterator[tuple[Rows, Rows, Blocks]]:
        reference = {name: self._reference_of(name) for name in pair}
        names = sorted({part for name in reference for part in self.plan.sums[name]})
        for rows, blocks in self._rows.iter_rows(names):
            shifted = {name: self._sum_parts(rows, name) - reference[name] for name in reference}
            yield shifted[pair[0]], shifted[pair[1]], blocks
