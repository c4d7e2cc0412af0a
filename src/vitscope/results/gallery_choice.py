"""Which images a gallery shows: extremes, quantiles, and some drawn at random."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

Why = Literal["lowest", "highest", "quantile", "random"]
"""What an image was chosen for: its number among all images, or the draw."""


def choose_images(
    numbers: Mapping[str, float], everyone: Sequence[float] | np.ndarray, limit: int
) -> list[tuple[str, Why]]:
    """Choose images that show the spread of a number and what is ordinary.

    A quarter of them have the lowest values, a quarter the highest, a quarter lie nearest to evenly
    spaced quantiles of all images, and the rest are those with the smallest digests, which is a
    draw at random. They come in turns, so that any first part of them is balanced too.
    """
    quarter = max(1, limit // 4)
    ranked = sorted((v, digest) for digest, v in numbers.items() if math.isfinite(v))
    queues: dict[Why, Iterator[str]] = {
        "lowest": (digest for _, digest in ranked[:quarter]),
        "highest": (digest for _, digest in ranked[::-1][:quarter]),
        "quantile": iter(_nearest_to_quantiles(ranked, everyone, quarter)),
        "random": iter(sorted(numbers)),
    }
    chosen: dict[str, Why] = {}
    wanted = min(limit, len(numbers))
    while len(chosen) < wanted:
        for why, queue in queues.items():
            found = next((digest for digest in queue if digest not in chosen), None)
            if found is not None and len(chosen) < wanted:
                chosen[found] = why
    return list(chosen.items())


def _nearest_to_quantiles(
    ranked: Sequence[tuple[float, str]], everyone: Sequence[float] | np.ndarray, count: int
) -> list[str]:
    values = np.asarray(everyone, dtype=np.float64)
    values = values[np.isfinite(values)]
    if not ranked or not values.size:
        return []
    middles = np.quantile(values, (np.arange(count) + 0.5) / count)
    nearest = (min(ranked, key=lambda one: (abs(one[0] - m), one[1])) for m in middles)
    return [digest for _, digest in nearest]
