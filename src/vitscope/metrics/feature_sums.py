"""Sums over images from which CKA and variance shares follow, with intervals; they merge exactly.

Rows are their own sufficient statistics: they are kept as they are, on disk, while that takes less
room than the moments of size d² per block that they are folded into later. Memory is O(d²) per
compared pair however many images come.
"""

import math
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.metrics.feature_plan import FeaturePlan, Pair
from vitscope.metrics.jackknife import NUM_BLOCKS, Estimate, compute_interval, make_estimate
from vitscope.metrics.linear_cka import (
    Hsic,
    compute_cka,
    compute_hsic,
    expected_biased_cka,
    is_constant,
)
from vitscope.metrics.moments import (
    PairMoments,
    Rows,
    compute_covariance_trace,
    compute_moments,
    shift_moments,
)
from vitscope.metrics.row_store import RowStore

Vector = Float[Tensor, " dim"]

_FOLD_AT = 4
"""Rows per block and dimension at which rows are folded. From about there on moments are smaller:
some 36 pairs of d² numbers of 8 bytes against some 15 features of d numbers of 4 bytes a row."""


@dataclass(frozen=True)
class CkaEstimate:
    """Linear CKA of a restricted output with the full one.

    Attributes:
        biased: The paper's estimator.
        unbiased: The estimator that does not grow with d / n.
        ci95: 95 % jackknife interval of `unbiased`; None where it cannot be told.
        biased_if_unrelated: What `biased` would be, about, for unrelated features of these
            (effective) dimensions on this many images.
    """

    biased: float
    unbiased: float
    ci95: tuple[float, float] | None
    biased_if_unrelated: float


@dataclass(frozen=True)
class _PairEstimates:
    """Statistics of one pair over all images and with each non-empty block left out."""

    hsic: Hsic
    covariance: float
    constant: bool
    left_out: tuple[tuple[Hsic, float], ...]


class FeatureSums:
    """The sums of one layer: `update` with batches, `merge` with other sums, then estimate."""

    def __init__(
        self,
        plan: FeaturePlan,
        dtype: torch.dtype = torch.float32,
        rows_folder: Path | None = None,
    ) -> None:
        """Start with no images.

        Args:
            plan: Which features come and which are compared.
            dtype: Precision of the features; tells variation from rounding.
            rows_folder: Where rows are written; a temporary folder if None.
        """
        self.plan = plan
        self.dtype = dtype
        if rows_folder is None:
            rows_folder = Path(tempfile.mkdtemp(prefix="vitscope-rows-"))
            weakref.finalize(self, shutil.rmtree, rows_folder, ignore_errors=True)
        self._rows_folder = rows_folder
        self._rows = RowStore(rows_folder)
        self._owner: object = None
        self._totals: dict[str, Vector] = {}
        self._moments: list[dict[Pair, PairMoments]] = [{} for _ in range(NUM_BLOCKS)]
        self._reference: dict[str, Vector] = {}
        self._counts = [0] * NUM_BLOCKS
        self._cache: dict[Pair, _PairEstimates] = {}

    @property
    def num_images(self) -> int:
        """Images seen."""
        return sum(self._counts)

    @property
    def block_sizes(self) -> list[int]:
        """Images in each jackknife block that holds any."""
        return [count for count in self._counts if count]

    def compute_block_moments(self, pair: Pair) -> list[PairMoments]:
        """Moments of a pair in each jackknife block that holds images.

        Args:
            pair: One of the plan's `pairs`.

        Returns:
            Moments about one reference, which lies near the means.
        """
        return self._block_moments(pair, self._reference_of(pair))

    def update(self, features: Mapping[str, Rows], blocks: Sequence[int]) -> None:
        """Take in a batch.

        Args:
            features: The plan's kept features, one row per image, on the CPU.
            blocks: Jackknife block of each image.
        """
        self._cache.clear()
        kept = {name: features[name] for name in self.plan.kept}
        for name, rows in kept.items():
            self._add_total(name, rows.double().sum(dim=0))
        self._rows.append(kept, blocks)
        for block in blocks:
            self._counts[block] += 1
        self._fold_if_full()

    def merge(self, other: "FeatureSums") -> None:
        """Take in the sums of a disjoint set of images.

        Args:
            other: Sums of the same plan; left unchanged.

        Raises:
            ResultError: If the plans differ.
        """
        if self.plan != other.plan or self.dtype != other.dtype:
            raise ResultError("these sums are of different features and cannot be merged")
        self._cache.clear()
        if not self._reference:
            self._reference = dict(other._reference)
        for block in range(NUM_BLOCKS):
            for pair, moments in other._moments[block].items():
                self._add_moments(block, pair, self._rebase(other, pair, moments))
            self._counts[block] += other._counts[block]
        for name, total in other._totals.items():
            self._add_total(name, total)
        for rows, blocks in other._rows.iter_rows(self.plan.kept):
            self._rows.append(rows, blocks.tolist())
        self._fold_if_full()

    def compute_mean(self, name: str) -> Vector:
        """Mean of a feature over all images.

        Args:
            name: One of the plan's `sums`.

        Returns:
            The mean, in float64.
        """
        total = torch.stack([self._totals[part] for part in self.plan.sums[name]]).sum(dim=0)
        return total / self.num_images

    def estimate_cka(self, readout: str, part: str) -> CkaEstimate:
        """CKA between the full and a restricted output.

        Args:
            readout: A readout of the plan.
            part: A kept part of that readout.

        Returns:
            The estimates; NaN where one of the two does not vary over the images.
        """
        full, kept = self.plan.comparisons[readout][part]
        xy, xx, yy = (self._estimate(pair) for pair in ((full, kept), (full, full), (kept, kept)))
        if xx.constant or yy.constant:
            return CkaEstimate(math.nan, math.nan, None, math.nan)
        unbiased = compute_cka(xy.hsic.unbiased, xx.hsic.unbiased, yy.hsic.unbiased)
        left_out = [
            compute_cka(a.unbiased, b.unbiased, c.unbiased)
            for (a, _), (b, _), (c, _) in zip(xy.left_out, xx.left_out, yy.left_out, strict=True)
        ]
        return CkaEstimate(
            biased=compute_cka(xy.hsic.biased, xx.hsic.biased, yy.hsic.biased),
            unbiased=unbiased,
            ci95=compute_interval(unbiased, left_out, self.block_sizes),
            biased_if_unrelated=expected_biased_cka(
                self.num_images, self._effective_dim(xx), self._effective_dim(yy)
            ),
        )

    def estimate_share(self, total: str, term: str) -> Estimate:
        """Part of a total's variance over images that a term accounts for.

        Σ ⟨term − mean, total − mean⟩ / Σ ‖total − mean‖²; sums to 1 over terms.

        Args:
            total: "attention" or "residual".
            term: A term of that total.

        Returns:
            The share; NaN where the total does not vary over the images.
        """
        full, part = self.plan.shares[total][term]
        xy, xx = self._estimate((full, part)), self._estimate((full, full))
        if xx.constant:
            return Estimate(math.nan, None)
        value = xy.covariance / xx.covariance
        left_out = [
            a / b if b > 0 else math.nan
            for (_, a), (_, b) in zip(xy.left_out, xx.left_out, strict=True)
        ]
        return make_estimate(value, left_out, self.block_sizes)

    def to_tensors(self) -> dict[str, Tensor]:
        """Everything there is to save beside the rows, which are written to their folder.

        Returns:
            Named tensors; `from_tensors` makes the same sums of them and the rows' folder.
        """
        self._rows.flush()
        tensors = {f"reference/{name}": vector for name, vector in self._reference.items()}
        tensors |= {f"total/{name}": vector for name, vector in self._totals.items()}
        tensors["counts"] = torch.tensor(self._counts)
        for block in range(NUM_BLOCKS):
            for (x, y), moments in self._moments[block].items():
                for field in fields(moments):
                    key = f"moments/{block}/{x}|{y}/{field.name}"
                    tensors[key] = getattr(moments, field.name).contiguous()
        return tensors

    @classmethod
    def from_tensors(
        cls,
        plan: FeaturePlan,
        dtype: torch.dtype,
        tensors: Mapping[str, Tensor],
        rows_folder: Path,
        owner: object = None,
    ) -> "FeatureSums":
        """Restore saved sums; what is saved is only read, whatever is done with them.

        Args:
            plan: The plan they were made with.
            dtype: Precision of the features.
            tensors: What `to_tensors` returned.
            rows_folder: Where the rows are.
            owner: Whatever must live as long as the sums for the rows to be there.

        Returns:
            The sums.

        Raises:
            ResultError: If a tensor of the plan, or rows, are missing.
        """
        sums = cls(plan, dtype)
        sums._owner = owner
        sums._rows = RowStore(sums._rows_folder, saved=rows_folder)
        try:
            sums._restore(tensors)
        except KeyError as error:
            raise ResultError(
                f"the saved sums lack {error.args[0]!r}: the file is damaged"
            ) from None
        return sums

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._counts = tensors["counts"].tolist()
        if self.num_images:
            self._totals = {name: tensors[f"total/{name}"] for name in self.plan.kept}
        x, y = self.plan.pairs[0]
        folded = 0
        for block in range(NUM_BLOCKS):
            if f"moments/{block}/{x}|{y}/count" in tensors:
                self._moments[block] = {
                    pair: _read_moments(tensors, block, pair) for pair in self.plan.pairs
                }
                folded += round(float(self._moments[block][x, y].count))
                self._reference = {n: tensors[f"reference/{n}"] for n in self._compared()}
        if folded + len(self._rows) != self.num_images:
            raise KeyError(f"rows of {self.num_images - folded - len(self._rows)} images")

    def _add_total(self, name: str, total: Vector) -> None:
        self._totals[name] = self._totals[name] + total if name in self._totals else total

    def _compared(self) -> Iterable[str]:
        return dict.fromkeys(name for pair in self.plan.pairs for name in pair)

    def _feature(self, rows: Mapping[str, Rows], name: str) -> Rows:
        parts = [rows[part].double() for part in self.plan.sums[name]]
        return parts[0] if len(parts) == 1 else torch.stack(parts).sum(dim=0)

    def _fold_if_full(self) -> None:
        width = max((len(total) for total in self._totals.values()), default=0)
        if len(self._rows) < max(1, _FOLD_AT * width * NUM_BLOCKS):
            return
        if not self._reference:
            self._reference = {name: self.compute_mean(name) for name in self._compared()}
        for pair in self.plan.pairs:
            for block, moments in self._iter_moments_of_rows(pair, self._reference):
                self._add_moments(block, pair, moments)
        self._rows.clear()

    def _add_moments(self, block: int, pair: Pair, moments: PairMoments) -> None:
        held = self._moments[block].get(pair)
        self._moments[block][pair] = moments if held is None else held + moments

    def _iter_moments_of_rows(
        self, pair: Pair, reference: Mapping[str, Vector]
    ) -> Iterator[tuple[int, PairMoments]]:
        x, y = pair
        names = sorted({*self.plan.sums[x], *self.plan.sums[y]})
        for rows, blocks in self._rows.iter_rows(names):
            full_x, full_y = self._feature(rows, x), self._feature(rows, y)
            for block in sorted(set(blocks.tolist())):
                of_block = blocks == block
                yield (
                    block,
                    compute_moments(full_x[of_block], full_y[of_block], reference[x], reference[y]),
                )

    def _rebase(self, other: "FeatureSums", pair: Pair, moments: PairMoments) -> PairMoments:
        x, y = pair
        offset_x = self._reference[x] - other._reference[x]
        offset_y = self._reference[y] - other._reference[y]
        return shift_moments(moments, offset_x, offset_y)

    def _reference_of(self, pair: Pair) -> Mapping[str, Vector]:
        return self._reference or {name: self.compute_mean(name) for name in pair}

    def _block_moments(self, pair: Pair, reference: Mapping[str, Vector]) -> list[PairMoments]:
        found = {k: held[pair] for k, held in enumerate(self._moments) if pair in held}
        for block, moments in self._iter_moments_of_rows(pair, reference):
            found[block] = found[block] + moments if block in found else moments
        return [moments for _, moments in sorted(found.items())]

    def _estimate(self, pair: Pair) -> _PairEstimates:
        if pair in self._cache:
            return self._cache[pair]
        reference = self._reference_of(pair)
        blocks = self._block_moments(pair, reference)
        total = sum(blocks[1:], start=blocks[0])
        rests = [total - block for block in blocks]
        self._cache[pair] = _PairEstimates(
            hsic=compute_hsic(total),
            covariance=float(compute_covariance_trace(total)),
            constant=pair[0] == pair[1]
            and is_constant(total, reference[pair[0]], torch.finfo(self.dtype).eps),
            left_out=tuple((compute_hsic(r), float(compute_covariance_trace(r))) for r in rests),
        )
        return self._cache[pair]

    def estimate_effective_dim(self, feature: str) -> float:
        """Effective number of dimensions in which a feature varies over images.

        Args:
            feature: A feature that the plan compares with itself.

        Returns:
            The participation ratio (tr Σ)² / tr Σ² of its covariance, tr Σ² estimated without bias;
            NaN where the feature does not vary or there are too few images.
        """
        estimate = self._estimate((feature, feature))
        return math.nan if estimate.constant else self._effective_dim(estimate)

    def is_constant(self, feature: str) -> bool:
        """Whether a feature is the same for every image, up to rounding.

        Args:
            feature: A feature that the plan compares with itself.

        Returns:
            True where it does not vary.
        """
        return self._estimate((feature, feature)).constant

    def _effective_dim(self, estimate: _PairEstimates) -> float:
        if not estimate.hsic.unbiased > 0:
            return math.nan
        variance = estimate.covariance / (self.num_images - 1)
        return variance**2 / estimate.hsic.unbiased


def _read_moments(tensors: Mapping[str, Tensor], block: int, pair: Pair) -> PairMoments:
    prefix = f"moments/{block}/{pair[0]}|{pair[1]}/"
    return PairMoments(**{f.name: tensors[prefix + f.name] for f in fields(PairMoments)})
