"""The jackknife of Busing, Meijer & van der Leeden (1999) in plain numpy, from its definition."""

import numpy as np
from scipy.stats import t as student_t


def busing_interval(statistic, rows, blocks):
    """95 % interval of a statistic of the rows, made again without each block of them."""
    rows, blocks = np.asarray(rows), np.asarray(blocks)
    groups, sizes = np.unique(blocks, return_counts=True)
    n, g = len(blocks), len(groups)
    theta = statistic(rows)
    without = np.array([statistic(rows[blocks != group]) for group in groups])
    jackknifed = g * theta - np.sum((n - sizes) * without) / n
    h = n / sizes
    pseudo = h * theta - (h - 1) * without
    variance = np.mean((pseudo - jackknifed) ** 2 / (h - 1))
    half = student_t.ppf(0.975, g - 1) * np.sqrt(variance)
    return theta - half, theta + half
