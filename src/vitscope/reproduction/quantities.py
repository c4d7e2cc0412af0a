"""The numbers of a summary that the paper's claims are held against, each with its interval."""

from itertools import pairwise
from statistics import median
from typing import Any

from vitscope.figures.numbers import (
    Interval,
    find,
    find_terms,
    number,
    numbers,
    read_cka,
    read_estimate,
    tell_undefined_cka,
)
from vitscope.reproduction.evidence import (
    MIN_IMAGES_WITHOUT_INTERVAL,
    Quantity,
    Reading,
    Summary,
    UntoldError,
    count_images,
)
from vitscope.reproduction.readings import (
    MISSING,
    average,
    divide,
    read_estimated,
    read_mean,
    read_proportion,
    take_as_it_is,
)

_TOTALS = {"attention": "t", "residual": "r"}


def cka(readout: str, part: str) -> Quantity:
    """The unbiased CKA of the full output and what is left of it, the biased one beside it."""

    def read(summary: Summary) -> Reading:
        found = read_cka(find(summary, "cka", readout, part))
        if found is None:
            raise UntoldError(tell_undefined_cka(summary, readout, [part]))
        biased = "" if found.biased is None else f"biased {found.biased:.4g}"
        return Reading(found.value, found.low, found.high, biased)

    name = f"CKA({_TOTALS.get(readout, readout + ' output')}, {part})"
    return Quantity(name, f"cka.{readout}.{part}.unbiased", read)


def one_shot_kept(readout: str, classifier: str) -> Quantity:
    """What the patches alone keep of the top-5 accuracy beyond chance of the full output."""
    path = ("accuracy", classifier, readout)

    def read(summary: Summary) -> Reading:
        if find(summary, *path) is None:
            raise UntoldError(f"was not measured by {classifier} in the {readout} readout")
        chance = number(find(summary, "chance", "top5"))
        full = read_estimate(find(summary, *path, "full", "top5"))
        patches = read_estimate(find(summary, *path, "patches", "top5"))
        if chance is None or full is None or patches is None:
            raise UntoldError(MISSING)
        if full.value <= chance or (full.low is not None and full.low <= chance):
            raise UntoldError("is undefined: the full output does no better than chance")
        kept = divide(_beyond(patches, chance), _beyond(full, chance))
        shown = f"top-5: patches {patches.value:.1%}, full {full.value:.1%}"
        return Reading(kept.value, kept.low, kept.high, shown)

    source = f"accuracy.{classifier}.{readout}.{{patches, full}}.top5, chance.top5"
    return Quantity("part of top-5 kept by patches alone", source, read)


def token_state(state: str, key: str, name: str) -> Quantity:
    """How much a state of the dominant register depends on the image."""

    def read(summary: Summary) -> Reading:
        return read_estimated(find(_dominant_token(summary), state, key))

    return Quantity(name, f"anatomy.tokens.register_*.{state}.{key}", read)


def _beyond(accuracy: Interval, chance: float) -> Interval:
    # Below chance nothing is kept, and no less than nothing.
    low, high = (None if end is None else max(0.0, end - chance) for end in _ends(accuracy))
    return Interval(max(0.0, accuracy.value - chance), low, high)


def _ends(interval: Interval) -> tuple[float | None, float | None]:
    return interval.low, interval.high


def _mean_at(summary: Summary, *path: str) -> Reading:
    return read_mean(find(summary, *path), count_images(summary))


def _patch_share(summary: Summary) -> Any:
    if find(summary, "attention_mass", "registers") is None:
        raise UntoldError("needs registers, of which there are none")
    return find(summary, "patch_share")


def _read_patch_share(summary: Summary) -> Reading:
    return read_mean(_patch_share(summary), count_images(summary), at_most=1.0)


def _read_patch_share_width(summary: Summary) -> Reading:
    low, high = (number(find(_patch_share(summary), key)) for key in ("p05", "p95"))
    return take_as_it_is(None if low is None or high is None else high - low)


def _read_lowest_patch_share(summary: Summary) -> Reading:
    return take_as_it_is(number(find(_patch_share(summary), "p05")))


def _dominant(summary: Summary) -> Any:
    found = find(summary, "anatomy", "dominant_register")
    if number(find(found, "index")) is None:
        raise UntoldError("needs registers, of which there are none")
    return found


def _name_dominant(summary: Summary) -> str:
    return f"register_{number(find(_dominant(summary), 'index')):.0f}"


def _dominant_token(summary: Summary) -> Any:
    return find(summary, "anatomy", "tokens", _name_dominant(summary))


def _read_same_register(summary: Summary) -> Reading:
    share = number(find(_dominant(summary), "share"))
    if share is None:
        raise UntoldError(MISSING)
    return read_proportion(share, count_images(summary))


def _read_register_ratio(summary: Summary) -> Reading:
    norms, count = find_terms(summary, "anatomy", "norms"), count_images(summary)
    highest = _name_dominant(summary)
    names = sorted(name for name in norms if name.startswith("register_"))
    others = [read_mean(norms[name], count) for name in names if name != highest]
    if not others:
        raise UntoldError("needs two registers or more")
    return divide(read_mean(norms.get(highest), count), average(others))


def _read_scaled_down(summary: Summary) -> Reading:
    dimensions = find(_dominant_token(summary), "top_dimensions")
    stand_out = []
    for key in ("before", "after"):
        # A norm takes the mean off all dimensions; that alone must not count as scaling.
        centre = number(find(dimensions, f"median_{key}"))
        values = numbers(find(dimensions, key))
        if centre is None or values is None:
            raise UntoldError(MISSING)
        distances = [abs(value - centre) for value in values]
        if median(distances) == 0:
            raise UntoldError(MISSING)
        stand_out.append(max(distances) / median(distances))
    before, after = stand_out
    return take_as_it_is(after / before, f"{before:.4g} before, {after:.4g} after")


def _read_outlier_images(summary: Summary) -> Reading:
    rows = find(summary, "high_norm_tokens")
    if not isinstance(rows, list) or len(rows) < 2:
        raise UntoldError(MISSING)
    part, count = number(find(rows[-2], "images_fraction")), count_images(summary)
    if part is not None:
        return read_proportion(part, count)
    bound = number(find(rows[-2], "images_fraction_at_most"))
    if bound is None:
        raise UntoldError(MISSING)
    return Reading(bound, 0.0, read_proportion(bound, count).high, "none found: at most this part")


def _read_patch_cosine(summary: Summary) -> Reading:
    return _mean_at(summary, "cosine", "attention", "patches")


def _read_norm_ratio(summary: Summary) -> Reading:
    skip, patches = (_mean_at(summary, "contribution_norm", key) for key in ("skip", "patches"))
    ratio = divide(skip, patches)
    shown = f"{skip.value:.4g} and {patches.value:.4g}"
    return Reading(ratio.value, ratio.low, ratio.high, shown)


def _similarities(summary: Summary) -> list[Reading]:
    rows = find(summary, "layer_similarity")
    if not isinstance(rows, list) or len(rows) < 3:
        raise UntoldError(MISSING)
    return [read_mean(row, count_images(summary), at_most=1.0) for row in rows]


def _read_before_last(summary: Summary) -> Reading:
    return _similarities(summary)[-2]


def _read_three_quarters(summary: Summary) -> Reading:
    found = _similarities(summary)
    return found[3 * (len(found) - 1) // 4]


def _read_largest_step(summary: Summary) -> Reading:
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


_WITHOUT_INTERVAL = MIN_IMAGES_WITHOUT_INTERVAL

PATCH_SHARE = Quantity("patch share", "patch_share.{mean, std}", _read_patch_share)
PATCH_SHARE_WIDTH = Quantity(
    "95 % − 5 % quantile of patch share",
    "patch_share.{p05, p95}",
    _read_patch_share_width,
    _WITHOUT_INTERVAL,
)
LOWEST_PATCH_SHARE = Quantity(
    "5 % quantile of patch share", "patch_share.p05", _read_lowest_patch_share, _WITHOUT_INTERVAL
)
SAME_REGISTER = Quantity(
    "part of the images with the same register highest",
    "anatomy.dominant_register.share",
    _read_same_register,
)
REGISTER_RATIO = Quantity(
    "norm of that register over the others'",
    "anatomy.norms.register_*.{mean, std}",
    _read_register_ratio,
)
HIDDEN_COSINE = token_state("hidden", "pairwise_cosine", "pairwise cosine before the layer norm")
NORMED_COSINE = token_state("normed", "pairwise_cosine", "pairwise cosine after the layer norm")
HIDDEN_VARIANCE = token_state("hidden", "variance_share", "variance share before the layer norm")
NORMED_VARIANCE = token_state("normed", "variance_share", "variance share after the layer norm")
SCALED_DOWN = Quantity(
    "largest over median distance of a dimension from the median, after over before the layer norm",
    "anatomy.tokens.register_*.top_dimensions.{before, after, median_before, median_after}",
    _read_scaled_down,
    _WITHOUT_INTERVAL,
)
OUTLIER_IMAGES = Quantity(
    "part of the images with high-norm patch tokens",
    "high_norm_tokens[L − 1].{images_fraction, images_fraction_at_most}",
    _read_outlier_images,
)
PATCH_COSINE = Quantity(
    "cos(c_patches, t)", "cosine.attention.patches.{mean, std}", _read_patch_cosine
)
NORM_RATIO = Quantity(
    "‖skip‖ / ‖c_patches‖", "contribution_norm.{skip, patches}.{mean, std}", _read_norm_ratio
)
BEFORE_LAST = Quantity(
    "layer similarity before the last block",
    "layer_similarity[L − 1].{mean, std}",
    _read_before_last,
)
THREE_QUARTERS = Quantity(
    "layer similarity at three quarters of the depth",
    "layer_similarity[⌊3 L / 4⌋].{mean, std}",
    _read_three_quarters,
)
LARGEST_STEP = Quantity(
    "largest rise of layer similarity in one block",
    "layer_similarity[0 … L].{mean, std}",
    _read_largest_step,
)
