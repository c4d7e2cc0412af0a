"""May the attention maps be believed? The one sentence an audit ends in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitscope.metrics.feature_sums import CkaEstimate

Status = Literal["holds", "weakened", "broken", "borderline", "not enough images"]

HOLDS_FROM = 0.9
BROKEN_BELOW = 0.5
MIN_IMAGES = 20
"""Two images a jackknife block on average; with fewer the interval itself means nothing."""

_DOORS = {
    "registers": "the register tokens",
    "cls": "the [CLS] token's attention to itself",
    "distillation": "the distillation token",
    "skip": "the [CLS] token's skip connection",
}


@dataclass(frozen=True)
class Verdict:
    """Whether the global feature comes from where its attention map points.

    Attributes:
        status: What the interval of the unbiased residual CKA(r, c_patches) allows to say.
        door: The source other than patches with the largest variance share; None where there is
            none.
        text: The verdict as a sentence, with its numbers.
    """

    status: Status
    door: str | None
    text: str


def judge(cka: CkaEstimate, num_images: int, shares: Mapping[str, float]) -> Verdict:
    """Read the verdict off the numbers.

    Patch integration holds from an unbiased residual CKA(r, c_patches) of 0.9 on, is weakened
    from 0.5 and broken below. An interval that crosses one of the two lines is borderline; one
    that crosses both, or that cannot be had, says that there were not enough images.

    Args:
        cka: CKA of r with c_patches.
        num_images: Images it was estimated from.
        shares: Variance shares of the residual stream by term.

    Returns:
        The verdict.
    """
    others = {name: share for name, share in shares.items() if name in _DOORS and share == share}
    door = max(others, key=others.__getitem__) if others else None
    status = _status(cka, num_images)
    return Verdict(status, door, _sentence(status, door, cka, num_images, shares))


def _status(cka: CkaEstimate, num_images: int) -> Status:
    if num_images < MIN_IMAGES or cka.ci95 is None:
        return "not enough images"
    low, high = cka.ci95
    crossed = [line for line in (BROKEN_BELOW, HOLDS_FROM) if low < line <= high]
    if len(crossed) == 2:
        return "not enough images"
    if crossed:
        return "borderline"
    if cka.unbiased >= HOLDS_FROM:
        return "holds"
    return "weakened" if cka.unbiased >= BROKEN_BELOW else "broken"


def _sentence(
    status: Status,
    door: str | None,
    cka: CkaEstimate,
    num_images: int,
    shares: Mapping[str, float],
) -> str:
    interval = "" if cka.ci95 is None else f", 95 % interval {cka.ci95[0]:.3f} to {cka.ci95[1]:.3f}"
    value = "undefined" if math.isnan(cka.unbiased) else f"{cka.unbiased:.3f}"
    numbers = f"CKA(r, patches) = {value}{interval}, n = {num_images}"
    if status == "not enough images":
        return f"not enough images to tell ({numbers}): audit more pictures"
    if status == "borderline":
        assert cka.ci95 is not None
        holds = cka.ci95[0] < HOLDS_FROM <= cka.ci95[1]
        between = "holds and weakened" if holds else "weakened and broken"
        claim = f"patch integration is borderline between {between}"
    else:
        claim = f"patch integration {'holds' if status == 'holds' else 'is ' + status}"
    if door is None:
        return f"{claim} ({numbers})"
    # Without a skip connection the query is a learned probe, and [CLS] one of the tokens it reads.
    name = _DOORS[door] if "skip" in shares else _DOORS[door].replace("'s attention to itself", "")
    source = f"{name} ({shares[door]:.0%} of the output's variance)"
    tail = "the largest other source is" if status == "holds" else "the output comes through"
    return f"{claim} ({numbers}); {tail} {source}"
