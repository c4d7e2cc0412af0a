"""May the attention maps be believed? The one sentence that an audit, or one picture, ends in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from vitscope.metrics.pair_estimates import CkaEstimate

Status = Literal["holds", "weakened", "broken", "borderline", "no variation", "not enough images"]
Constant = Literal["output", "patches"]
PictureStatus = Literal["most", "part", "do not read", "cannot tell"]

HOLDS_FROM = 0.9
BROKEN_BELOW = 0.5
MIN_IMAGES = 20
"""Two images a jackknife block on average; with fewer the interval itself means nothing."""

MOST_WITHIN_PERCENT = 20
PART_WITHIN_PERCENT = 50
"""How far from 100 % the patches' share may be where the map shows most, or part, of it."""

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


def judge(
    cka: CkaEstimate,
    num_images: int,
    shares: Mapping[str, float],
    constant: Constant | None = None,
) -> Verdict:
    """Read the verdict off the numbers.

    Patch integration holds from an unbiased residual CKA(r, c_patches) of 0.9 on, is weakened
    from 0.5 and broken below. An interval that crosses one of the two lines is borderline; one
    that crosses both, or that cannot be had, says that there were not enough images. Where the
    output, or what patches wrote, is the same for every one of several images, no number of them
    would tell.

    Args:
        cka: CKA of r with c_patches.
        num_images: Images it was estimated from.
        shares: Variance shares of the residual stream by term.
        constant: What does not vary over the images, if the output or what patches wrote does not.

    Returns:
        The verdict.
    """
    others = {name: share for name, share in shares.items() if name in _DOORS and share == share}
    door = max(others, key=others.__getitem__) if others else None
    status = _status(cka, num_images, constant)
    numbers = _describe(cka, num_images)
    claim = _claim(status, cka, constant)
    if status == "not enough images":
        return Verdict(status, door, f"{claim} ({numbers}): audit more pictures")
    if door is None:
        return Verdict(status, door, f"{claim} ({numbers})")
    source = f"{_name_door(door, shares)} ({shares[door]:.0%} of the output's variance)"
    tail = "the largest other source is" if status == "holds" else "the output comes through"
    return Verdict(status, door, f"{claim} ({numbers}); {tail} {source}")


def _status(cka: CkaEstimate, num_images: int, constant: Constant | None) -> Status:
    # A single image has nothing to differ from.
    if constant is not None and num_images > 1:
        return "no variation"
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


def _claim(status: Status, cka: CkaEstimate, constant: Constant | None) -> str:
    if status == "not enough images":
        return "not enough images to tell"
    if status == "no variation":
        what = "the output" if constant == "output" else "what patches wrote"
        return f"{what} is the same for every picture"
    if status == "borderline":
        assert cka.ci95 is not None
        holds = cka.ci95[0] < HOLDS_FROM <= cka.ci95[1]
        between = "holds and weakened" if holds else "weakened and broken"
        return f"patch integration is borderline between {between}"
    return f"patch integration {'holds' if status == 'holds' else 'is ' + status}"


def _describe(cka: CkaEstimate, num_images: int) -> str:
    interval = "" if cka.ci95 is None else f", 95 % interval {cka.ci95[0]:.3f} to {cka.ci95[1]:.3f}"
    value = "undefined" if math.isnan(cka.unbiased) else f"{cka.unbiased:.3f}"
    return f"CKA(r, patches) = {value}{interval}, n = {num_images}"


def _name_door(door: str, shares: Mapping[str, float]) -> str:
    # Without a skip connection the query is a learned probe, and [CLS] one of the tokens it reads.
    return _DOORS[door] if "skip" in shares else _DOORS[door].replace("'s attention to itself", "")


@dataclass(frozen=True)
class PictureVerdict:
    """Whether one picture's attention map may be read as an explanation of its output.

    Attributes:
        status: "most" of the output comes from the patches, "part" of it does, the map is "do not
            read", or the numbers "cannot tell".
        share: The patches' centred share of the output; NaN where it is undefined or there is no
            reference.
        door: The source other than patches with the largest share, whatever its sign; None where
            there is none.
        text: The verdict as a sentence.
        basis: What the verdict rests on, in words.
    """

    status: PictureStatus
    share: float
    door: str | None
    text: str
    basis: str


def judge_picture(shares: Mapping[str, float], num_images: int, images: str) -> PictureVerdict:
    """Read the verdict on one image off its centred shares.

    The map shows most of the output where the patches' share is 80 to 120 %, part of it from 50 to
    150 %, and is not to be read beyond. Shares are signed: above 100 % other sources take back what
    patches wrote, which a map hides as it hides what others add.

    Args:
        shares: Signed centred shares of the output by term (groups and skip), which sum to 1; NaN
            where there is nothing to share.
        num_images: Images behind the means that output and terms were centred on.
        images: Which images those are, in words that follow "images".

    Returns:
        The verdict; with fewer than `MIN_IMAGES` images means say little, and it cannot tell.
    """
    basis = f"shares of r − mean r, means over {num_images} images {images}"
    patches = shares["patches"]
    if num_images < MIN_IMAGES:
        text = (
            f"cannot tell: a mean over {num_images} images says little, audit {MIN_IMAGES} or more"
        )
        return PictureVerdict("cannot tell", math.nan, None, text, basis)
    if math.isnan(patches):
        text = "cannot tell what carries this output: it does not differ from the reference's mean"
        return PictureVerdict("cannot tell", patches, None, text, basis)
    status, claim = _read_share(_percent(patches))
    text = f"patches carry {_percent_text(patches)} of this output: {claim}"
    others = {name: share for name, share in shares.items() if name in _DOORS}
    door = max(others, key=lambda name: abs(others[name])) if others else None
    if door is not None:
        source = f"{_name_door(door, shares)} ({_percent_text(others[door])})"
        text = f"{text}; the main other source is {source}"
    return PictureVerdict(status, patches, door, text, basis)


def judge_alone(shares: Mapping[str, float], remedy: str) -> PictureVerdict:
    """Say of one image without a reference what can be said.

    What is the same for every image fills its raw shares, so that they are no verdict. Where
    patches alone write the output, they carry all of it whatever the means.

    Args:
        shares: Signed shares of r − bias by term; NaN where there is nothing to share.
        remedy: What to do to have a reference, as a phrase.

    Returns:
        The verdict.
    """
    patches = shares["patches"]
    if set(shares) == {"patches"} and not math.isnan(patches):
        text = f"patches carry 100 % of this output: {_read_share(100)[1]}"
        basis = "there being no other source: beside the bias patches alone write this output"
        return PictureVerdict("most", 1.0, None, text, basis)
    text = f"cannot tell without a reference: {remedy}"
    basis = "no reference: raw numbers also count what is the same for every image"
    return PictureVerdict("cannot tell", math.nan, None, text, basis)


def _read_share(percent: int) -> tuple[PictureStatus, str]:
    distance = abs(100 - percent)
    if distance <= MOST_WITHIN_PERCENT:
        return "most", "the map shows where most of it comes from"
    if distance <= PART_WITHIN_PERCENT:
        return "part", "the map shows only part of where it comes from"
    return "do not read", "do not read this map as an explanation"


def _percent(share: float) -> int:
    # The number that the sentence shows is the one that is held against the lines.
    return round(100 * share)


def _percent_text(share: float) -> str:
    return f"{_percent(share)} %".replace("-", "−")
