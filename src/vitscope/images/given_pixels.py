"""Preprocessed pixels of the caller: their size, and whether a model could take them."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from vitscope.errors import ImageReadError, UsageError
from vitscope.images.addresses import ImageAddress
from vitscope.images.in_memory import HeldImage
from vitscope.images.preprocessing import Preprocessing

_NUM_LOOKED_AT = 8
_NEAR = 0.02  # to 0 and to 1, which photographs reach
_LEAST_LEVEL = 10  # which no normalised image reaches


def find_pixel_size(found: Sequence[ImageAddress]) -> tuple[int, int] | None:
    """Height and width, from the first image that can be read."""
    for address in found:
        if isinstance(address, HeldImage):
            with suppress(ImageReadError):
                height, width = address.read().partition(b"\n")[0].split()
                return int(height), int(width)
    return None


def check_normalised(found: Sequence[ImageAddress], preprocessing: Preprocessing) -> None:
    """Refuse pixels that were obviously never normalised, if the model's own are.

    Levels go up to 255, scaled ones from 0 to 1 and no further. That normalised images of any
    contrast end at both is next to impossible.
    """
    ranges = _find_ranges(found)
    if not ranges:
        return
    lowest, highest = min(low for low, _ in ranges), max(high for _, high in ranges)
    mean, std = np.array(preprocessing.mean), np.array(preprocessing.std)
    least, most = 0.0 - float((mean / std).max()), float(((1 - mean) / std).max())
    varied = [one for one in ranges if one[1] - one[0] > 0.5]
    are_levels = lowest >= 0 and highest > max(2 * most, _LEAST_LEVEL)
    are_scaled = 0 <= lowest < _NEAR and 1 - _NEAR < highest <= 1 and len(varied) > 1
    if not (are_levels or (are_scaled and least < 0)):
        return
    own = "1" if are_scaled else "1/255" if highest <= 255 else "1/65535"
    steps = f"subtract its mean {preprocessing.mean} and divide by its std {preprocessing.std}"
    raise UsageError(
        f"the pixels are from {lowest:.3g} to {highest:.3g}, as before normalisation, with "
        f"preprocessed=True: expected what the model takes, from {least:.3g} to {most:.3g}"
        f"{f'; {steps}' if least < 0 else ''}. If it takes them so, wrap it with "
        f"preprocessing=Preprocessing(...) of mean 0 and std {own}"
    )


def _find_ranges(found: Sequence[ImageAddress]) -> list[tuple[float, float]]:
    # A few images, spread over the set.
    step = max(1, len(found) // _NUM_LOOKED_AT)
    ranges = []
    for address in found[::step][:_NUM_LOOKED_AT]:
        if isinstance(address, HeldImage):
            with suppress(ImageReadError):
                numbers = np.frombuffer(address.read().partition(b"\n")[2], np.float32)
                ranges.append((float(numbers.min()), float(numbers.max())))
    return ranges
