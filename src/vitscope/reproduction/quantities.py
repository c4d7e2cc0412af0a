"""The numbers of a summary to compare with the paper's claims, each with its interval."""

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from vitscope.figures.intervals import Interval, tell_undefined_cka
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import TokenSummary
from vitscope.metrics.jackknife import Estimate, student_975
from vitscope.metrics.rank_correlation import NORMAL_975
from vitscope.reproduction.evidence import (
    MIN_IMAGES_WITHOUT_INTERVAL,
    Quantity,
    Reading,
    UntoldError,
)
from vitscope.results.schema import AuditSummary, OneShotSummary
from vitscope.results.schema_numbers import Anatomy, DominantRegister
from vitscope.results.vocabulary import TOTALS

MISSING = "is missing or undefined"
_REGISTER = "layers[-1].anatomy.tokens.register_*"


def read_mean(found: Distribution | None, *, at_most: float = math.inf) -> Reading:
    """A mean over images with its 95 % interval."""
    if found is None or not math.isfinite(found.mean):
        raise UntoldError(MISSING)
    mean = found.mean
    if not math.isfinite(found.std) or found.n < 2:
        return Reading(mean)
    half = student_975(float(found.n - 1)) * found.std / math.sqrt(found.n - 1)
    return Reading(mean, mean - half, min(mean + half, max(mean, at_most)))


def read_proportion(part: float, count: int) -> Reading:
    """A fraction of the images with its 95 % interval."""
    if not 0 <= part <= 1:
        raise UntoldError("is not between 0 and 1")
    if count < 1:
        return Reading(part)
    square = NORMAL_975**2
    centre = (part + square / (2 * count)) / (1 + square / count)
    half = math.sqrt(part * (1 - part) / count + square / (4 * count**2))
    half *= NORMAL_975 / (1 + square / count)
    # For none or all of the images, the end is exactly 0 or 1; avoid rounding.
    low = 0.0 if part == 0 else centre - half
    return Reading(part, low, 1.0 if part == 1 else centre + half)


def divide(above: Interval, below: Interval) -> Reading:
    """Ratio of two nonnegative numbers."""
    if below.value <= 0:
        raise UntoldError("would divide by zero")
    value = above.value / below.value
    if above.low is None or above.high is None or below.low is None or below.high is None:
        return Reading(value)
    high = above.high / below.low if below.low > 0 else math.inf
    return Reading(value, max(0.0, above.low) / below.high, high)


def read_estimate(found: Estimate | None) -> Reading:
    """An estimate with its own interval."""
    if found is None or not math.isfinite(found.value):
        raise UntoldError(MISSING)
    return Reading(found.value, *(found.ci95 or (None, None)))


def take_as_it_is(value: float | None, note: str = "") -> Reading:
    """A number without an interval, compared with thresholds as it is."""
    if value is None or not math.isfinite(value):
        raise UntoldError(MISSING)
    return Reading(value, value, value, note=note)


def average(readings: Sequence[Interval]) -> Interval:
    """Mean of several numbers."""

    def mean(ends: Sequence[float | None]) -> float | None:
        known = [end for end in ends if end is not None]
        return sum(known) / len(known) if len(known) == len(ends) else None

    value = sum(reading.value for reading in readings) / len(readings)
    return Interval(value, mean([r.low for r in readings]), mean([r.high for r in readings]))


def cka(readout: str, part: str) -> Quantity:
    """The unbiased CKA of the full and a restricted output, with the biased one."""

    def read(summary: AuditSummary) -> Reading:
        found = summary.last.cka.get(readout, {}).get(part)
        if found is None or math.isnan(found.unbiased):
            raise UntoldError(tell_undefined_cka(summary, readout, [part]))
        low, high = found.ci95 or (None, None)
        biased = "" if math.isnan(found.biased) else f"biased {found.biased:.4g}"
        return Reading(found.unbiased, low, high, note=biased)

    name = f"CKA({TOTALS.get(readout, readout + ' output')}, {part})"
    return Quantity(name, f"layers[-1].cka.{readout}.{part}.unbiased", read)


def one_shot_kept(readout: str, classifier: str) -> Quantity:
    """Fraction of the full output's top-5 accuracy above chance that patches alone keep."""

    def read(summary: OneShotSummary) -> Reading:
        parts = summary.accuracy.get(classifier, {}).get(readout)
        if parts is None:
            raise UntoldError(f"was not measured by {classifier} in the {readout} readout")
        chance = summary.chance.top5
        full, patches = (read_estimate(parts[part].top5) for part in ("full", "patches"))
        if full.value <= chance or (full.low is not None and full.low <= chance):
            raise UntoldError("is undefined: the full output does no better than chance")
        kept = divide(_beyond(patches, chance), _beyond(full, chance))
        shown = f"top-5: patches {patches.value:.1%}, full {full.value:.1%}"
        return Reading(kept.value, kept.low, kept.high, note=shown)

    source = f"accuracy.{classifier}.{readout}.{{patches, full}}.top5, chance.top5"
    return Quantity("part of top-5 kept by patches alone", source, read)


def _of_register(state: str, number: str, when: str) -> Quantity:
    # Of a state of the dominant register: "pairwise_cosine" or "variance_share" over images.
    def read(summary: AuditSummary) -> Reading:
        return read_estimate(getattr(_dominant_token(summary).states.get(state), number, None))

    name = f"{number.replace('_', ' ')} {when} the layer norm"
    return Quantity(name, f"{_REGISTER}.states.{state}.{number}", read)


def _beyond(accuracy: Interval, chance: float) -> Interval:
    # An accuracy below chance counts as 0.
    ends = (accuracy.low, accuracy.high)
    low, high = (None if end is None else max(0.0, end - chance) for end in ends)
    return Interval(max(0.0, accuracy.value - chance), low, high)


def _patch_share(summary: AuditSummary) -> Distribution:
    if "registers" not in summary.last.attention_mass:
        raise UntoldError("needs registers, of which there are none")
    return summary.last.patch_share


def _dominant(summary: AuditSummary) -> tuple[Anatomy, DominantRegister]:
    anatomy = summary.last.anatomy
    if anatomy is None or anatomy.dominant_register is None:
        raise UntoldError("needs registers, of which there are none")
    return anatomy, anatomy.dominant_register


def _dominant_token(summary: AuditSummary) -> TokenSummary:
    anatomy, dominant = _dominant(summary)
    found = anatomy.tokens.get(f"register_{dominant.index}")
    if found is None:
        raise UntoldError(MISSING)
    return found


def _read_register_ratio(summary: AuditSummary) -> Reading:
    anatomy, dominant = _dominant(summary)
    highest = f"register_{dominant.index}"
    names = sorted(name for name in anatomy.norms if name.startswith("register_"))
    others = [read_mean(anatomy.norms[name]) for name in names if name != highest]
    if not others:
        raise UntoldError("needs two registers or more")
    return divide(read_mean(anatomy.norms.get(highest)), average(others))


def _read_scaled_down(summary: AuditSummary) -> Reading:
    top = _dominant_token(summary).top_dimensions
    stand_out = []
    # The norm subtracts the mean over dimensions, which must not count as scaling.
    for values, centre in ((top.before, top.median_before), (top.after, top.median_after)):
        distances = [abs(value - centre) for value in values]
        if not distances or not median(distances) > 0:
            raise UntoldError(MISSING)
        stand_out.append(max(distances) / median(distances))
    before, after = stand_out
    return take_as_it_is(after / before, f"{before:.4g} before, {after:.4g} after")


def _read_outlier_images(summary: AuditSummary) -> Reading:
    if len(summary.high_norm_tokens) < 2:
        raise UntoldError(MISSING)
    found, count = summary.high_norm_tokens[-2], summary.data.num_images
    if found.images_fraction is not None:
        return read_proportion(found.images_fraction, count)
    bound = found.images_fraction_at_most
    if bound is None:
        raise UntoldError(MISSING)
    high = read_proportion(bound, count).high
    return Reading(bound, 0.0, high, note="none found: at most this part")


def _read_norm_ratio(summary: AuditSummary) -> Reading:
    norms = summary.last.contribution_norm
    skip, patches = (read_mean(norms.get(key)) for key in ("skip", "patches"))
    ratio = divide(skip, patches)
    shown = f"{skip.value:.4g} and {patches.value:.4g}"
    return Reading(ratio.value, ratio.low, ratio.high, note=shown)


def _similarities(summary: AuditSummary) -> list[Reading]:
    if len(summary.layer_similarity) < 3:
        raise UntoldError(MISSING)
    return [read_mean(found, at_most=1.0) for found in summary.layer_similarity]


def _read_largest_step(summary: AuditSummary) -> Reading:
    found = _similarities(summary)
    pairs = list(pairwise(found))
    value = max(after.value - before.value for before, after in pairs)
    lows, highs = [], []
    for before, after in pairs:
        if before.low is None or before.high is None or after.low is None or after.high is None:
            return Reading(value)
        lows.append(after.low - before.high)
        highs.append(after.high - before.low)
    return Reading(value, max(lows), max(highs))


PATCH_SHARE = Quantity(
    "patch share",
    "layers[-1].patch_share.{mean, std}",
    lambda summary: read_mean(_patch_share(summary), at_most=1.0),
)
PATCH_SHARE_WIDTH = Quantity(
    "95 % − 5 % quantile of patch share",
    "layers[-1].patch_share.{p05, p95}",
    lambda summary: take_as_it_is(_patch_share(summary).p95 - _patch_share(summary).p05),
    MIN_IMAGES_WITHOUT_INTERVAL,
)
LOWEST_PATCH_SHARE = Quantity(
    "5 % quantile of patch share",
    "layers[-1].patch_share.p05",
    lambda summary: take_as_it_is(_patch_share(summary).p05),
    MIN_IMAGES_WITHOUT_INTERVAL,
)
SAME_REGISTER = Quantity(
    "part of the images with the same register highest",
    "layers[-1].anatomy.dominant_register.share",
    lambda summary: read_proportion(_dominant(summary)[1].share, summary.data.num_images),
)
REGISTER_RATIO = Quantity(
    "norm of that register over the others'",
    "layers[-1].anatomy.norms.register_*.{mean, std}",
    _read_register_ratio,
)
HIDDEN_COSINE = _of_register("hidden", "pairwise_cosine", "before")
NORMED_COSINE = _of_register("normed", "pairwise_cosine", "after")
HIDDEN_VARIANCE = _of_register("hidden", "variance_share", "before")
NORMED_VARIANCE = _of_register("normed", "variance_share", "after")
SCALED_DOWN = Quantity(
    "largest over median distance of a dimension from the median, after over before the layer norm",
    f"{_REGISTER}.top_dimensions.{{before, after, median_before, median_after}}",
    _read_scaled_down,
    MIN_IMAGES_WITHOUT_INTERVAL,
)
OUTLIER_IMAGES = Quantity(
    "part of the images with high-norm patch tokens",
    "high_norm_tokens[L − 1].{images_fraction, images_fraction_at_most}",
    _read_outlier_images,
)
PATCH_COSINE = Quantity(
    "cos(c_patches, t)",
    "layers[-1].cosine.attention.patches.{mean, std}",
    lambda summary: read_mean(summary.last.cosine["attention"].get("patches")),
)
NORM_RATIO = Quantity(
    "‖skip‖ / ‖c_patches‖",
    "layers[-1].contribution_norm.{skip, patches}.{mean, std}",
    _read_norm_ratio,
)
BEFORE_LAST = Quantity(
    "layer similarity before the last block",
    "layer_similarity[L − 1].{mean, std}",
    lambda summary: _similarities(summary)[-2],
)
THREE_QUARTERS = Quantity(
    "layer similarity at three quarters of the depth",
    "layer_similarity[⌊3 L / 4⌋].{mean, std}",
    lambda summary: _similarities(summary)[3 * (len(summary.layer_similarity) - 1) // 4],
)
LARGEST_STEP = Quantity(
    "largest rise of layer similarity in one block",
    "layer_similarity[0 … L].{mean, std}",
    _read_largest_step,
)
