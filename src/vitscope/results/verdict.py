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
        share: The patches' signed share of the output; NaN where it is undefined.
        door: The source other than patches with the largest share, whatever its sign; None where
            there is none.
        text: The verdict as a sentence.
        basis: What the shares are shares of, in words.
    """

    status: PictureStatus
    share: float
    door: str | None
    text: str
    basis: str


def judge_picture(
    shares: Mapping[str, float],
    num_reference: int | None,
    *,
    cropped_to: tuple[int, int] | None = None,
) -> PictureVerdict:
    """Read the verdict on one picture off its bill.

    The map shows most of the output where the patches' share is 80 to 120 %, part of it from 50 to
    150 %, and is not to be read beyond. Shares are signed: above 100 % other sources take back what
    patches wrote, which a map hides as it hides what others add.

    Args:
        shares: Signed shares of the output by term (groups and skip), which sum to 1; NaN where
            there is nothing to share.
        num_reference: Pictures behind the means that output and terms were centred on; None where
            the shares are those of r − bias.
        cropped_to: Input (height, width) in pixels that those were cropped to, where this picture
            was given in another framing; None where it was framed as they were.

    Returns:
        The verdict.
    """
    basis = _describe_basis(num_reference, cropped_to)
    patches = shares["patches"]
    if math.isnan(patches):
        constant = "the bias" if num_reference is None else "the mean of the reference pictures"
        text = f"cannot tell what carries this output: it does not differ from {constant}"
        return PictureVerdict("cannot tell", patches, None, text, basis)
    status, claim = _read_share(_percent(patches))
    text = f"patches carry {_percent_text(patches)} of this output: {claim}"
    others = {name: share for name, share in shares.items() if name in _DOORS}
    door = max(others, key=lambda name: abs(others[name])) if others else None
    if door is not None:
        source = f"{_name_door(door, shares)} ({_percent_text(others[door])})"
        text = f"{text}; the largest other source is {source}"
    return PictureVerdict(status, patches, door, text, basis)


def _describe_basis(num_reference: int | None, cropped_to: tuple[int, int] | None) -> str:
    if num_reference is None:
        return (
            "shares of r − bias; one picture without a reference audit: what is the same for every "
            "picture still counts"
        )
    basis = f"shares of r − mean r, means over {num_reference} reference pictures"
    if cropped_to is None:
        return f"{basis} framed as this one"
    height, width = cropped_to
    return (
        f"{basis} cropped to {height} x {width} px; this one is whole, and the means of whole "
        "pictures may differ"
    )


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
