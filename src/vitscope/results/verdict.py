"""Whether attention maps may be believed: the verdict on an audit or on one image."""

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, TypeVar, get_args

from vitscope.files.printable import join_words
from vitscope.metrics.estimates import CkaEstimate
from vitscope.metrics.jackknife import Estimate
from vitscope.results.number_text import write_number, write_percent
from vitscope.results.vocabulary import PHRASES, SOURCES

Level = Literal["broken", "weakened", "holds"]
Span = tuple[Level, Level]
"""Worst and best level within an interval."""
Status = Literal["holds", "weakened", "broken", "borderline", "no variation", "not enough images"]
Decider = Literal["alignment", "source", "both"]
Constant = Literal["output", "patches"]
ImageStatus = Literal["most", "part", "do not read", "cannot tell"]

LEVELS: tuple[Level, ...] = get_args(Level)
ALIGNMENT_LINES = (0.5, 0.9)
"""Thresholds of CKA(r, c_patches): broken below the first, holds from the second on."""
SOURCE_LINES = (0.5, 0.8)
"""Likewise of the patches' variance share; 1 + x counts as 1 − x."""
MIN_IMAGES = 20
"""Two images per jackknife block on average; with fewer the interval is meaningless."""
MIN_IMAGES_TO_JUDGE = 100
"""With fewer, a kind of image that is 1 in 20 is too often missed, which no interval shows."""

MOST_WITHIN_PERCENT = round(100 * (1 - SOURCE_LINES[1]))
PART_WITHIN_PERCENT = round(100 * (1 - SOURCE_LINES[0]))
"""Largest distance of the patches' share from 100 % if they carry most, or part, of the output."""

Mood = Literal["good", "middling", "bad", "unknown"]
MOODS: Mapping[Status | ImageStatus, Mood] = {
    "holds": "good",
    "weakened": "middling",
    "borderline": "middling",
    "broken": "bad",
    "no variation": "unknown",
    "not enough images": "unknown",
    "most": "good",
    "part": "middling",
    "do not read": "bad",
    "cannot tell": "unknown",
}
"""Colour class of each status."""

SYMBOLS: Mapping[Status, str] = {
    "holds": "●",
    "weakened": "▲",
    "borderline": "◆",
    "broken": "✕",
    "no variation": "?",
    "not enough images": "?",
}
"""Symbol of each status, which takes no colour to tell."""

_DIGITS = 3  # numbers are rounded as printed before they are compared with the thresholds
_DECIDED: Mapping[Decider | None, str] = {
    "alignment": " (CKA decides)",
    "source": " (the variance share decides)",
    "both": " (CKA and the variance share decide)",
    None: "",
}
_OTHERS = tuple(name for name in SOURCES if name != "patches")


@dataclass(frozen=True)
class Verdict:
    """Whether the global feature comes from where its attention map points."""

    status: Status  # the worse of the two readings
    decided_by: Decider | None  # the reading that decides the status; None if neither does
    alignment: Span  # reading of the interval of the unbiased residual CKA(r, c_patches)
    source: Span  # reading of the interval of the patches' variance share
    # the source other than patches with the largest absolute variance share; None if there is none
    main_other_source: str | None
    text: str  # the verdict as a sentence, with its numbers


def judge(
    cka: Mapping[str, CkaEstimate],
    shares: Mapping[str, Estimate],
    num_images: int,
    constant: Constant | None = None,
) -> Verdict:
    """Compute the verdict: the worse of two readings, each with its interval.

    CKA says whether patches arrange the images as the output does, but not how much they write; the
    variance share says how much. Each interval spans levels from a worst to a best; the verdict
    spans from the worse of the two worst to the worse of the two best. If it spans one level, that
    is the status; two neighbours are borderline; all three, or fewer than `MIN_IMAGES_TO_JUDGE`
    images, are not enough images. If patches are the only source, the map holds by construction. If
    the output, or the patches' contribution, is the same for all images, there is no variation to
    judge, however many images are added.
    """
    alignment = _span(cka["patches"].ci95, ALIGNMENT_LINES)
    source = _span(_nearness(shares["patches"].ci95), SOURCE_LINES)
    worst, best = (min(pair, key=LEVELS.index) for pair in zip(alignment, source, strict=True))
    span = worst, best
    alone = set(shares) == {"patches"}
    status = _find_status(span, num_images, constant, alone=alone)
    decided_by = None
    if status in (*LEVELS, "borderline") and not alone:
        decided_by = _find_decider(span, alignment, source)
    values = {name: share.value for name, share in shares.items()}
    main_other_source, told_other = _find_main_other_source(values, _tell_percent)
    parts = [
        f"{_claim(status, span, constant, alone=alone)}{_DECIDED[decided_by]}: "
        f"{_tell_numbers(shares['patches'], cka['patches'], num_images)}",
        told_other,
        _tell_alike(cka),
        _advise(status, num_images),
    ]
    return Verdict(
        status, decided_by, alignment, source, main_other_source, "; ".join(filter(None, parts))
    )


def _span(ends: tuple[float, float] | None, lines: tuple[float, float]) -> Span:
    if ends is None:
        return LEVELS[0], LEVELS[-1]
    low, high = (LEVELS[bisect_right(lines, round(end, _DIGITS))] for end in ends)
    return low, high


def _nearness(ends: tuple[float, float] | None) -> tuple[float, float] | None:
    # 1 − |1 − share|: above 1 other sources cancel part of the patches' contribution.
    if ends is None:
        return None
    near = [1 - abs(1 - round(end, _DIGITS)) for end in ends]
    return min(near), 1.0 if ends[0] <= 1 <= ends[1] else max(near)


def _find_status(span: Span, num_images: int, constant: Constant | None, *, alone: bool) -> Status:
    # A single image never varies.
    if constant is not None and num_images > 1:
        return "no variation"
    if alone and num_images > 1:
        return "holds"  # by construction: nothing is estimated
    worst, best = span
    if num_images < MIN_IMAGES_TO_JUDGE or (worst, best) == (LEVELS[0], LEVELS[-1]):
        return "not enough images"
    return worst if worst == best else "borderline"


def _find_decider(span: Span, alignment: Span, source: Span) -> Decider:
    if alignment == source or span not in (alignment, source):
        return "both"
    return "alignment" if span == alignment else "source"


def _claim(status: Status, span: Span, constant: Constant | None, *, alone: bool) -> str:
    if status == "not enough images":
        return "not enough images to tell"
    if status == "no variation":
        what = "the output" if constant == "output" else "the patches' contribution"
        return f"{what} is the same for every image"
    if status == "borderline":
        return f"patch integration is borderline between {span[1]} and {span[0]}"
    if status == "holds":
        return f"patch integration holds{' by construction' if alone else ''}"
    return f"patch integration is {status}"


def _find_main_other_source(
    shares: Mapping[str, float], tell: Callable[[float], str]
) -> tuple[str | None, str]:
    # With what is said of it.
    others = {
        name: abs(share)
        for name, share in shares.items()
        if name in _OTHERS and not math.isnan(share)
    }
    if not others:
        return None, ""
    name = max(others, key=others.__getitem__)
    phrase = PHRASES[name]
    if "skip" not in shares:  # the query is a learned probe, and [CLS] is a token like others
        phrase = phrase.replace("'s attention to itself", "")
    return name, f"the main other source is {phrase} ({tell(shares[name])})"


def _tell_numbers(share: Estimate, cka: CkaEstimate, num_images: int) -> str:
    told_share = _tell_interval(share.value, share.ci95, _tell_percent)
    told_cka = _tell_interval(cka.unbiased, cka.ci95, partial(write_number, digits=_DIGITS))
    intervals = "" if share.ci95 is None and cka.ci95 is None else ", 95 % intervals"
    return (
        f"variance share of patches = {told_share}, CKA(r, patches) = {told_cka}{intervals}, "
        f"n = {num_images}"
    )


def _tell_interval(
    value: float, ci95: tuple[float, float] | None, tell: Callable[[float], str]
) -> str:
    if ci95 is None:
        return tell(value)
    low, high = map(tell, ci95)
    return f"{tell(value)} ({low.removesuffix(' %')} to {high})"


def _tell_alike(cka: Mapping[str, CkaEstimate]) -> str:
    line = ALIGNMENT_LINES[1]
    alike = [
        term
        for term, found in cka.items()
        if term in SOURCES and round(found.unbiased, _DIGITS) >= line
    ]
    if len(alike) < 2:
        return ""
    return f"CKA cannot distinguish sources here: {join_words(alike)} reach {line}"


def _advise(status: Status, num_images: int) -> str:
    if status != "not enough images":
        return ""
    few = num_images < MIN_IMAGES_TO_JUDGE
    return f"a verdict takes {MIN_IMAGES_TO_JUDGE} images or more" if few else "audit more images"


def _tell_percent(share: float) -> str:
    return write_percent(round(share, _DIGITS))


@dataclass(frozen=True)
class ImageVerdict:
    """Whether one image's attention map may be read as an explanation of its output."""

    # "most" or "part" of the output comes from the patches, "do not read" the map, or "cannot tell"
    status: ImageStatus
    # the patches' centred share of the output; NaN if it is undefined or there is no reference
    share: float
    # the source other than patches with the largest absolute share; None if there is none
    main_other_source: str | None
    text: str  # the verdict as a sentence
    basis: str  # what the verdict rests on, in words


AnyVerdict = TypeVar("AnyVerdict", Verdict, ImageVerdict)


def judge_image(shares: Mapping[str, float], num_images: int, images: str) -> ImageVerdict:
    """Compute the verdict on one image from its centred shares.

    The patches together carry most of the output if their share is 80 to 120 %, part of it from 50
    to 150 %; otherwise the map should not be read. How the map spreads over patches is not judged.
    Shares are signed: above 100 % other sources cancel part of the patches' contribution, which a
    map does not show either.
    """
    basis = f"shares of r − mean r, means over {num_images} images {images}"
    patches = shares["patches"]
    if num_images < MIN_IMAGES:
        text = (
            f"cannot tell: a mean over {num_images} images says little, audit {MIN_IMAGES} or more"
        )
        return ImageVerdict("cannot tell", math.nan, None, text, basis)
    if math.isnan(patches):
        text = "cannot tell what carries this output: it does not differ from the reference's mean"
        return ImageVerdict("cannot tell", patches, None, text, basis)
    status, claim = _read_share(_percent(patches))
    text = f"patches together carry {_percent_text(patches)} of this output: {claim}"
    main_other_source, told_other = _find_main_other_source(shares, _percent_text)
    text = "; ".join(filter(None, [text, told_other]))
    return ImageVerdict(status, patches, main_other_source, text, basis)


def judge_alone(shares: Mapping[str, float], remedy: str) -> ImageVerdict:
    """Verdict on one image without a reference.

    Raw shares are dominated by what is the same for every image, so they give no verdict. If
    patches are the only source, they carry all of the output whatever the means.
    """
    patches = shares["patches"]
    if set(shares) == {"patches"} and not math.isnan(patches):
        text = f"patches together carry 100 % of this output: {_read_share(100)[1]}"
        basis = "patches and the bias are the only sources of this output"
        return ImageVerdict("most", 1.0, None, text, basis)
    text = f"cannot tell what attention leaves out without a reference: {remedy}"
    basis = "no reference: raw numbers also count what is the same for every image"
    return ImageVerdict("cannot tell", math.nan, None, text, basis)


def qualify(verdict: AnyVerdict, own_output: str) -> AnyVerdict:
    """Say first if the model returns something other than the judged [CLS] token."""
    if not own_output:
        return verdict
    text = f"[CLS] is not this model's output ({own_output}): {verdict.text}"
    return replace(verdict, text=text)


def _read_share(percent: int) -> tuple[ImageStatus, str]:
    distance = abs(100 - percent)
    if distance <= MOST_WITHIN_PERCENT:
        return "most", "the attention map leaves little out, but may weigh single patches wrongly"
    if distance <= PART_WITHIN_PERCENT:
        return "part", "the attention map shows only part of where it comes from"
    return "do not read", "do not read the attention map as an explanation"


def _percent(share: float) -> int:
    # The number in the sentence is the one compared with the thresholds.
    return round(100 * share)


def _percent_text(share: float) -> str:
    return f"{_percent(share)} %".replace("-", "−")
