"""Mergeable sums over images of the states of special tokens.

Mean pairwise cosine and variance share follow from the sums of a state, of its direction and of its
squared norm, without going through pairs of images.

Source: Lappe & Giese (NeurIPS 2025), section 3.2 and Fig. 2b.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.metrics.estimates import StateSummary, TokenSummary, TopDimensions
from vitscope.metrics.jackknife import NUM_BLOCKS, Estimate, leave_out
from vitscope.metrics.ratio_interval import compute_ratio_interval
from vitscope.metrics.sums import Batch

NUM_TOP_DIMENSIONS = 100

_PARTS = _SUM, _DIRECTION, _SQUARE = "sum", "direction", "square"


def _clip(share: float) -> float:
    # NaN stays NaN.
    return min(max(share, 0.0), 1.0) if math.isfinite(share) else share


class TokenSums:
    """Sums of the special tokens at one layer, and the estimates from them."""

    name: ClassVar[str] = "tokens"

    def __init__(self, tokens: Sequence[str]) -> None:
        """Start with no images."""
        self.tokens = tuple(tokens)
        self._counts: Int64[Tensor, " block"] = torch.zeros(NUM_BLOCKS, dtype=torch.int64)
        self._sums: dict[str, Tensor] = {}

    @property
    def states(self) -> tuple[str, ...]:
        """Names of the states seen, such as "hidden" and "keys"."""
        return tuple(dict.fromkeys(key.partition("/")[0] for key in self._sums))

    def update(self, batch: Batch) -> None:
        """Add a batch."""
        index = torch.tensor(batch.blocks)
        self._counts = self._counts + torch.bincount(index, minlength=NUM_BLOCKS)
        membership = torch.nn.functional.one_hot(index, NUM_BLOCKS).double().mT
        for state, rows in batch.states.items():
            exact = rows.transpose(0, 1).double()
            norms = exact.norm(dim=-1).unsqueeze(1)
            ones = membership.expand(len(exact), -1, -1)
            # A zero vector has no direction: it makes the sum of its block NaN (∞ · 0).
            inverse = torch.where(ones > 0, 1 / norms, 0.0)
            totals = torch.cat([ones, inverse], dim=1) @ exact
            self._add(f"{state}/{_SUM}", totals[:, :NUM_BLOCKS].transpose(0, 1))
            self._add(f"{state}/{_DIRECTION}", totals[:, NUM_BLOCKS:].transpose(0, 1))
            self._add(f"{state}/{_SQUARE}", (ones @ norms.mT.square()).transpose(0, 1))

    def merge(self, other: "TokenSums") -> None:
        """Add the sums of a disjoint set of images."""
        if self.tokens != other.tokens:
            raise ResultError("these sums have different tokens and cannot be merged")
        self._counts = self._counts + other._counts
        for name, total in other._sums.items():
            self._add(name, total)

    def estimate_pairwise_cosine(self, state: str, token: str) -> Estimate:
        """Mean cosine of a token's state over all pairs of images; NaN for fewer than two or zeros.

        (‖Σ û_i‖² − n) / (n (n − 1)) with û = x / ‖x‖.
        """
        counts, kept = self._unions()
        totals = kept @ self._of_token(f"{state}/{_DIRECTION}", token)
        cosines = (totals.square().sum(dim=1) - counts) / (counts * (counts - 1))
        return self._estimate(cosines, torch.ones_like(cosines))

    def estimate_variance_share(self, state: str, token: str) -> Estimate:
        """Fraction of a state's mean squared norm that varies over images, from 0 to 1 or NaN.

        n / (n − 1) · (1 − ‖mean x‖² / mean ‖x‖²): 0 for a constant, 1 for a state with mean zero.
        """
        counts, kept = self._unions()
        totals = kept @ self._of_token(f"{state}/{_SUM}", token)
        squares = kept @ self._of_token(f"{state}/{_SQUARE}", token)[:, 0]
        variances = (squares - totals.square().sum(dim=1) / counts) / (counts - 1)
        found = self._estimate(variances, squares / counts)
        ends = found.ci95 and (_clip(found.ci95[0]), _clip(found.ci95[1]))
        return Estimate(_clip(found.value), ends)

    def find_top_dimensions(self, token: str) -> TopDimensions:
        """The dimensions with the highest mean activation at the block's input, highest first."""
        count = float(self._counts.sum())
        before = self._of_token(f"hidden/{_SUM}", token).sum(dim=0) / count
        after = self._of_token(f"normed/{_SUM}", token).sum(dim=0) / count
        indices = before.argsort(descending=True, stable=True)[:NUM_TOP_DIMENSIONS]
        return TopDimensions(
            indices=tuple(indices.tolist()),
            before=tuple(before[indices].tolist()),
            after=tuple(after[indices].tolist()),
            median_before=float(before.median()),
            median_after=float(after.median()),
        )

    def save(self) -> dict[str, Tensor]:
        """The tensors to save."""
        return {"counts": self._counts, **self._sums}

    def load(self, tensors: Mapping[str, Tensor], _: Path | None = None) -> None:
        """Restore saved sums."""
        parts = dict(tensors)
        self._counts, self._sums = parts.pop("counts"), parts
        complete = {f"{state}/{part}" for state in self.states for part in _PARTS}
        fitting = all(part.shape[:2] == (NUM_BLOCKS, len(self.tokens)) for part in parts.values())
        if self._counts.shape != (NUM_BLOCKS,) or not fitting or complete != parts.keys():
            raise ValueError("sums of tokens are incomplete")
        if not all(_is_sound(name, part) for name, part in tensors.items()):
            raise ValueError("sums of tokens are below 0 or not finite")

    def summarize(self) -> dict[str, Any]:
        """Summary of each token."""
        return {"tokens": {token: self._summarize(token) for token in self.tokens}}

    def _summarize(self, token: str) -> TokenSummary:
        states = {
            state: StateSummary(
                pairwise_cosine=self.estimate_pairwise_cosine(state, token),
                variance_share=self.estimate_variance_share(state, token),
            )
            for state in self.states
        }
        return TokenSummary(states=states, top_dimensions=self.find_top_dimensions(token))

    def _add(self, name: str, total: Float[Tensor, "block token _"]) -> None:
        self._sums[name] = self._sums[name] + total if name in self._sums else total.contiguous()

    def _of_token(self, name: str, token: str) -> Float[Tensor, "block _"]:
        return self._sums[name][:, self.tokens.index(token)]

    def _unions(self) -> tuple[Float64[Tensor, " union"], Float64[Tensor, "union block"]]:
        # Images in each union of blocks, NaN if fewer than two, and its blocks.
        kept = torch.from_numpy(leave_out(self._counts.tolist()))
        counts = kept @ self._counts.double()
        return torch.where(counts < 2, math.nan, counts), kept

    def _estimate(
        self, above: Float64[Tensor, " union"], below: Float64[Tensor, " union"]
    ) -> Estimate:
        value = float(above[0] / below[0])
        sizes = self._counts[self._counts > 0].tolist()
        ends = compute_ratio_interval(above.numpy(), below.numpy(), sizes)
        # Neither a mean cosine nor a fraction exceeds 1.
        return Estimate(value, ends and (ends[0], min(ends[1], max(value, 1.0))))


def _is_sound(name: str, total: Tensor) -> bool:
    if name.endswith(f"/{_DIRECTION}"):  # NaN for a zero vector
        return not bool(total.isinf().any())
    return bool(total.isfinite().all()) and not (name.endswith(f"/{_SQUARE}") and (total < 0).any())
