"""Which map of a model to publish: comparisons of maps over the same images, and a sentence."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64

from vitscope.files.printable import join_words
from vitscope.metrics.jackknife import (
    Estimate,
    Replicates,
    block_of,
    replicate,
    replicate_mean,
    student_975,
)
from vitscope.metrics.rank_correlation import adjust_holm
from vitscope.results.number_text import write_number

LEAST_IMAGES = 20
"""With fewer images nothing is said about which map is better."""

REFERENCE_MAP = "attention"
_MOST_TITLES = 4

_FEW_MAPS = 3
"""If no more were judged, they are named: others may be better."""

BASELINES = ("oracle", "random", "centre", "edges")
"""Rankings that are no maps of the model: they are compared with, never recommended."""

Comparing = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True)
class Comparison:
    """A map against attention, image by image."""

    difference: Estimate  # mean over images of the map's gap less that of attention
    p: float  # that the mean is 0; NaN where it is undefined
    p_holm: float  # corrected for the number of maps
    answer: Comparing


@dataclass(frozen=True)
class MapVerdict:
    """Which map to publish."""

    best: str | None  # the map with the largest gap; None if it cannot be told from a baseline
    text: str


def average(values: Float64[np.ndarray, " image"], ids: Sequence[str]) -> Estimate:
    """Mean over the images where a score is defined, with its jackknife interval."""
    defined = ~np.isnan(values)
    if not defined.any():
        return Estimate(math.nan, None)
    blocks = np.array([block_of(image) for image in ids])
    return replicate_mean(values[defined], blocks[defined]).estimate()


def replicate_skill(
    gaps: Mapping[str, Float64[np.ndarray, " image"]], name: str, ids: Sequence[str]
) -> Replicates:
    """Skill over a set: (mean gap − mean gap of random) / (mean gap of the oracle − the same).

    It is a ratio of means, so that images on which the oracle gains little do not count more than
    others.
    """
    gained, possible = gaps[name] - gaps["random"], gaps["oracle"] - gaps["random"]

    def divide(kept: Bool[np.ndarray, " image"]) -> float:
        most = possible[kept].sum()
        return float(gained[kept].sum() / most) if most > 0 else math.nan

    return replicate(divide, list(map(block_of, ids)))


def compare_maps(
    gaps: Mapping[str, Float64[np.ndarray, " image"]],
    against: str,
    ids: Sequence[str],
    apart: Collection[str] = ("oracle", "random"),
) -> dict[str, Comparison]:
    """Compare the gap of each map with that of one of them, paired by image.

    The interval is a delete-one-block jackknife of the mean difference, p is Student's with one
    degree of freedom less than there are blocks, corrected by Holm over the maps. Those `apart`
    are left out.
    """
    differences = {
        name: average(values - gaps[against], ids)
        for name, values in gaps.items()
        if name != against and name not in apart
    }
    degrees = len({block_of(image) for image in ids}) - 1
    p_values = {name: _find_p(one, degrees) for name, one in differences.items()}
    corrected = adjust_holm({name: p for name, p in p_values.items() if not math.isnan(p)})
    found = {}
    for name, one in differences.items():
        p_holm = corrected.get(name, math.nan)
        answer: Comparing = "better" if one.value > 0 else "worse"
        if len(ids) < LEAST_IMAGES or not p_holm < 0.05:
            answer = "cannot tell"
        found[name] = Comparison(one, p_values[name], p_holm, answer)
    return found


def _find_p(difference: Estimate, degrees: int) -> float:
    from scipy.special import stdtr  # slow to import

    if difference.ci95 is None or degrees < 1:
        return math.nan
    half = (difference.ci95[1] - difference.ci95[0]) / 2
    if half == 0:
        return 1.0 if difference.value == 0 else 0.0
    t = abs(difference.value) / (half / student_975(float(degrees)))
    return float(2 * stdtr(degrees, -t))


def judge_maps(
    gaps: Mapping[str, Float64[np.ndarray, " image"]],
    skills: Mapping[str, Estimate],
    titles: Mapping[str, str],
    ids: Sequence[str],
    removal: str,
) -> MapVerdict:
    """Choose the map with the largest mean gap, and say how sure that is."""
    own = {name: values for name, values in gaps.items() if name not in BASELINES}
    if not own:
        return MapVerdict(None, "cannot tell: no map of the model was judged")
    means = {name: float(np.mean(values)) for name, values in own.items()}
    best = max(means, key=means.__getitem__)
    title, num_images = titles[best], len(ids)
    if num_images < LEAST_IMAGES:
        return MapVerdict(
            None,
            f"cannot tell which map to publish from {num_images} images, at least {LEAST_IMAGES} "
            f"are needed; {title} comes first",
        )
    of = f", of {join_words([titles[name] for name in own])} alone"
    on = f"({num_images} images, removal {removal}{of * (len(own) <= _FEW_MAPS)})"
    others = compare_maps(gaps, best, ids, apart=("oracle",))
    undecided = [name for name, one in others.items() if one.answer != "worse"]
    for name, words in _BASELINE_WORDS.items():
        if name in undecided:
            return MapVerdict(
                None,
                f"cannot tell which map to publish: {title} comes first, but cannot be told from "
                f"{words} {on}",
            )
    told = f"publish {title}: skill {_tell_skill(skills[best])}"
    if REFERENCE_MAP in own and best != REFERENCE_MAP:
        told += f", attention has {_tell_skill(skills[REFERENCE_MAP])}"
    told += f" {on}"
    equal = sorted(undecided, key=means.__getitem__, reverse=True)  # no baseline is left
    if equal:
        words = join_words([titles[name] for name in equal], "or", _MOST_TITLES)
        told += f"; cannot be told from {words}"
    return MapVerdict(best, told)


_BASELINE_WORDS = {
    "random": "random orders",
    "centre": "the distance from the centre",
    "edges": "the edges in the image",
}


def _tell_skill(skill: Estimate) -> str:
    ends = skill.ci95
    half = "" if ends is None else f" ± {write_number((ends[1] - ends[0]) / 2, 2)}"
    return f"{write_number(skill.value, 2)}{half}"
