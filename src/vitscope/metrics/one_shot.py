"""One-shot classification: one training and one test image per class, drawn repeatedly.

A draw depends on the set of images and the seed, not on the order of the images. Ties do not
favour the order of the classes, so that a feature without information scores exactly chance.

Source: Lappe & Giese (NeurIPS 2025), Fig. 3b.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from vitscope.metrics.jackknife import Estimate, student_975

Features = Float64[np.ndarray, "image dim"]
"""One row per image. Training and test images have one row per class, in the same order."""

Scores = Float64[np.ndarray, "image class"]
"""How well each test image fits each class."""

Scorer = Callable[[Features], Scores]

# Cosines and logits of float32 features that differ by less than this differ only by rounding.
_TIE = 1e-9


class Accuracy(NamedTuple):
    """Fraction of test images classified correctly."""

    top1: float
    top5: float


def group_images(labels: Sequence[str], identities: Sequence[str]) -> dict[str, list[int]]:
    """Indices of the distinct images of each class, sorted by label and identity."""
    places = sorted(range(len(labels)), key=lambda i: (labels[i], identities[i]))
    groups: dict[str, dict[str, int]] = {}
    for place in places:
        groups.setdefault(labels[place], {}).setdefault(identities[place], place)
    return {label: list(members.values()) for label, members in groups.items()}


def draw_pairs(
    classes: Sequence[Sequence[int]], num_draws: int, seed: int
) -> Int64[np.ndarray, "draw class 2"]:
    """Draw a training and a different test image of every class, uniformly, per draw and class."""
    generator = np.random.default_rng(seed)
    pairs = np.empty((num_draws, len(classes), 2), dtype=np.int64)
    for column, images in enumerate(classes):
        train = generator.integers(len(images), size=num_draws)
        test = generator.integers(len(images) - 1, size=num_draws)
        test += test >= train  # the training image is skipped
        pairs[:, column] = np.asarray(images)[np.stack([train, test], axis=-1)]
    return pairs


def fit_nearest(train: Features) -> Scorer:
    """Score of a class: cosine with its training image; a zero feature has cosine 0."""
    directions = _normalise(train)
    return lambda test: _normalise(test) @ directions.T


def fit_logistic(train: Features) -> Scorer:
    """Multinomial logistic regression on one training image per class.

    Training and test features are centred on the mean of the training features and divided by one
    number, the root mean square deviation of the training features over images and dimensions.
    Scaling each dimension would estimate its deviation from only as many images as there are
    classes, and would make the result depend on the basis of the features.

    scikit-learn's `LogisticRegression`, L2 penalty with C = 1, intercept, solver lbfgs from zeros,
    tolerance 1e-6, at most 1000 iterations; deterministic.
    """
    from sklearn.linear_model import LogisticRegression  # slow to import

    centre = train.mean(axis=0)
    size = np.sqrt(np.mean((train - centre) ** 2))
    model = LogisticRegression(C=1.0, solver="lbfgs", tol=1e-6, max_iter=1000)
    with warnings.catch_warnings():
        # scikit-learn takes one image per class for a regression target.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        # The penalty keeps the weights in the span of the training features. Fitting in a basis of
        # that span gives the same weights, much faster for wide features.
        basis = np.linalg.svd(train - centre, full_matrices=False)[2] / (size if size > 0 else 1.0)
        model.fit((train - centre) @ basis.T, np.arange(len(train)))

    def score(test: Features) -> Scores:
        logits: np.ndarray = model.decision_function((test - centre) @ basis.T)
        # For two classes scikit-learn returns only the second one's logit.
        return logits if logits.ndim == 2 else np.stack([-logits, logits], axis=-1)

    return score


CLASSIFIERS: Mapping[str, Callable[[Features], Scorer]] = MappingProxyType(
    {"nearest": fit_nearest, "logistic": fit_logistic}
)
"""Functions that fit a classifier, by name."""


def compute_accuracy(scores: Float64[np.ndarray, "class class"]) -> Accuracy:
    """Top-1 and top-5 accuracy over one test image per class; ties count by their probability."""
    truth = scores.diagonal()[:, None]
    above = (scores > truth + _TIE).sum(axis=1)
    tied = (np.abs(scores - truth) <= _TIE).sum(axis=1)
    top1, top5 = (float(np.mean(np.clip((k - above) / tied, 0, 1))) for k in (1, 5))
    return Accuracy(top1, top5)


def average_draws(values: Float64[np.ndarray, " draw"], *, at_least: float = 0.0) -> Estimate:
    """Mean over draws with a 95 % interval, Student's t: mean ± t(R − 1) · s / √R.

    The interval is for the mean over infinitely many draws from this image set. It does not cover
    the choice of the image set: classes and images are taken as given. Differences between two
    accuracies of the same draws are at least −1.
    """
    draws = len(values)
    mean = float(np.mean(values))
    if draws < 2:
        return Estimate(mean, None)
    half = student_975(float(draws - 1)) * float(np.std(values, ddof=1) / np.sqrt(draws))
    return Estimate(mean, (max(at_least, mean - half), min(1.0, mean + half)))


def chance_accuracy(num_classes: int) -> Accuracy:
    """Accuracy of guessing: 1 / C and min(5, C) / C."""
    return Accuracy(1 / num_classes, min(5, num_classes) / num_classes)


def _normalise(rows: Features) -> Features:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: Features = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return directions
