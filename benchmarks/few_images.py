"""How many images does a verdict take where a rare kind of image decides it?"""

import torch
from torch import Tensor

from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from vitscope.metrics.jackknife import NUM_BLOCKS, Estimate
from vitscope.metrics.moments import add_rows, make_moments
from vitscope.metrics.pair_estimates import (
    CkaEstimate,
    PairEstimates,
    estimate_cka,
    estimate_pair,
    replicate_share,
)
from vitscope.results.verdict import LEVELS, MIN_IMAGES_TO_JUDGE, Status, judge

_WIDTH = 24
_SIZES = (30, 50, 100, 150, 200)
_SHARE = 0.95
"""The patches' share of what ordinary images differ in."""
_TRUE_SHARE = 0.35
"""Their share of what all images differ in."""
_RARE = (0.02, 0.05)
_COLUMNS = ("rare kind", "images", "sets without any", "definite and wrong")


def measure(settings: Settings) -> Section:
    """Draw sets of images from a population with a rare kind, and judge each."""
    draws, sizes = (20, (20, 100)) if settings.tiny else (500, _SIZES)
    generator = torch.Generator().manual_seed(0)
    rows, truths = [], []
    for rare in _RARE:
        patches, skip, _ = _draw(20_000 if settings.tiny else 500_000, rare, generator)
        share, cka = _estimate(patches, skip)
        truths.append(f"{share.value:.2f} and {cka.unbiased:.2f} with {rare:.0%}")
        truth = _judge(share, cka)
        rows += [(f"{rare:.0%}", str(n), *_try(draws, n, rare, truth)) for n in sizes]
    return Section(
        title="How many images a verdict takes",
        how=f"r = c_patches + skip in {_WIDTH} dimensions. Ordinary images come from their patches "
        f"(share {_SHARE}). A rare kind, far away through the skip connection, dominates the "
        f"variance: the true share and CKA are {' and '.join(truths)} of this kind. Given are, of "
        f"{draws} sets of each size, the fraction without the rare kind and the fraction whose "
        "verdict would be definite and wrong if there were no least number of images.",
        tables=[Table(_COLUMNS, rows)],
    )


def _try(draws: int, n: int, rare: float, truth: Status) -> tuple[str, ...]:
    generator = torch.Generator().manual_seed(n)
    counts = torch.zeros(2)
    for _ in range(draws):
        patches, skip, is_rare = _draw(n, rare, generator)
        share, cka = _estimate(patches, skip)
        status = _judge(share, cka)
        counts += torch.tensor([not is_rare.any(), status in LEVELS and status != truth])
    return tuple(f"{float(part):.3f}" for part in counts / draws)


def _judge(share: Estimate, cka: CkaEstimate) -> Status:
    enough = max(_SIZES) + MIN_IMAGES_TO_JUDGE
    return judge({"patches": cka}, {"patches": share, "skip": share}, enough).status


def _draw(n: int, rare: float, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    patches, skip = torch.randn(2, n, _WIDTH, generator=generator, dtype=torch.float64)
    skip *= (1 / _SHARE - 1) ** 0.5
    is_rare = torch.rand(n, generator=generator) < rare
    added = _WIDTH * (1 / _TRUE_SHARE - 1 / _SHARE)
    skip[is_rare, 0] += (added / (rare * (1 - rare))) ** 0.5
    return patches, skip, is_rare


def _estimate(patches: Tensor, skip: Tensor) -> tuple[Estimate, CkaEstimate]:
    r = patches + skip
    r, patches = r - r.mean(dim=0), patches - patches.mean(dim=0)
    rp, rr, pp = (_pair(*pair) for pair in ((r, patches), (r, r), (patches, patches)))
    return replicate_share(rp, rr).estimate(), estimate_cka(rp, rr, pp)


def _pair(x: Tensor, y: Tensor) -> PairEstimates:
    blocks = make_moments(x.shape[1], y.shape[1], NUM_BLOCKS)
    for block in range(min(NUM_BLOCKS, len(x))):
        add_rows(blocks[block], x[block::NUM_BLOCKS], y[block::NUM_BLOCKS])
    return estimate_pair(blocks, None, torch.float64)
