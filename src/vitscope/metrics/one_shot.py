"""One-shot classification: one training and one test image a class, drawn again and again.

Requirements met here:

- A draw depends on which images there are and on the seed, never on the order they came in.
- Two copies of one image are never a training and a test image of the same class.
- Where scores tie, nothing is won by the order of the classes: a feature that is the same for
  every image scores exactly chance.

Source: Lappe & Giese (NeurIPS 2025), Fig. 3b.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64
from sklearn.linear_model import LogisticRegression

from vitscope.metrics.jackknife import Estimate, student_975

Features = Float64[np.ndarray, "image dim"]
"""A row an image; of training and of test images one a class, in the same order."""

Scores = Float64[np.ndarray, "image class"]
"""How well each test image fits each class."""

Scorer = Callable[[Features], Scores]

# Cosines and logits of float32 features that are nearer than this differ by rounding alone.
_TIE = 1e-9


class Accuracy(NamedTuple):
    """Part of the test images that are classified rightly.

    Attributes:
        top1: The true class has the highest score.
        top5: The true class is among the five highest.
    """

    top1: float
    top5: float


def group_images(labels: Sequence[str], identities: Sequence[str]) -> dict[str, list[int]]:
    """The different images of every class, in an order that is theirs alone.

    Returns:
        Places in the given sequences by class, sorted by label and then by identity; of images
        that are the same, byte for byte, in one class the first.
    """
    places = sorted(range(len(labels)), key=lambda i: (labels[i], identities[i]))
    groups: dict[str, dict[str, int]] = {}
    for place in places:
        groups.setdefault(labels[place], {}).setdefault(identities[place], place)
    return {label: list(members.values()) for label, members in groups.items()}


def draw_pairs(
    classes: Sequence[Sequence[int]], num_draws: int, seed: int
) -> Int64[np.ndarray, "draw class 2"]:
    """Draw a training and another test image of every class, each pair equally likely.

    Returns:
        Per draw and class the training and the test image.
    """
    generator = np.random.default_rng(seed)
    pairs = np.empty((num_draws, len(classes), 2), dtype=np.int64)
    for column, images in enumerate(classes):
        train = generator.integers(len(images), size=num_draws)
        test = generator.integers(len(images) - 1, size=num_draws)
        test += test >= train  # the training image is skipped
        pairs[:, column] = np.asarray(images)[np.stack([train, test], axis=-1)]
    return pairs


def fit_nearest(train: Features) -> Scorer:
    """Nearest training feature: a class scores the cosine with its one training image.

    Returns:
        The classifier. A feature of zeros has a cosine of 0 with everything.
    """
    directions = _normalise(train)
    return lambda test: _normalise(test) @ directions.T


def fit_logistic(train: Features) -> Scorer:
    """Multinomial logistic regression on one training image a class.

    Features are centred on the mean of the training features and divided by one number, their root
    mean square deviation over images and dimensions; test features by the same. A deviation per
    dimension would be a guess from as many images as there are classes, and would make the
    answer depend on the basis that the features are written in.

    scikit-learn's `LogisticRegression`, L2 penalty with C = 1, intercept, solver lbfgs from zeros,
    tolerance 1e-6, at most 1000 iterations: nothing in it is random.

    Returns:
        The classifier; a class scores its logit.
    """
    centre = train.mean(axis=0)
    size = np.sqrt(np.mean((train - centre) ** 2))
    model = LogisticRegression(C=1.0, solver="lbfgs", tol=1e-6, max_iter=1000)
    with warnings.catch_warnings():
        # One image a class is what is meant, and no regression in disguise.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        # The penalty keeps the weights in the span of the training features, of one dimension a
        # class at most: there the fit is the same, and of wide features many times faster.
        basis = np.linalg.svd(train - centre, full_matrices=False)[2] / (size if size > 0 else 1.0)
        model.fit((train - centre) @ basis.T, np.arange(len(train)))

    def score(test: Features) -> Scores:
        logits: np.ndarray = model.decision_function((test - centre) @ basis.T)
        # Of two classes scikit-learn gives the second one's alone.
        return logits if logits.ndim == 2 else np.stack([-logits, logits], axis=-1)

    return score


CLASSIFIERS: Mapping[str, Callable[[Features], Scorer]] = MappingProxyType(
    {"nearest": fit_nearest, "logistic": fit_logistic}
)
"""From training features to a classifier, by name."""


def compute_accuracy(scores: Float64[np.ndarray, "class class"]) -> Accuracy:
    """Top-1 and top-5 accuracy over one test image a class.

    Returns:
        The accuracies. Of classes that tie with the true one each is as likely to be named first: a
        test image counts with the probability that the true class is among the k first.
    """
    truth = scores.diagonal()[:, None]
    above = (scores > truth + _TIE).sum(axis=1)
    tied = (np.abs(scores - truth) <= _TIE).sum(axis=1)
    top1, top5 = (float(np.mean(np.clip((k - above) / tied, 0, 1))) for k in (1, 5))
    return Accuracy(top1, top5)


def average_draws(values: Float64[np.ndarray, " draw"]) -> Estimate:
    """Mean over draws with a 95 % interval, Student's t: mean ± t(R − 1) · s / √R.

    The interval covers the draw of the two images of each class: where the mean over endlessly
    many draws from this image set lies. It does not cover the choice of the image set, whose
    classes and images are taken as given.

    Returns:
        Mean and interval, cut to the 0 to 1 that an accuracy can be; no interval of a single draw.
    """
    draws = len(values)
    mean = float(np.mean(values))
    if draws < 2:
        return Estimate(mean, None)
    half = student_975(float(draws - 1)) * float(np.std(values, ddof=1) / np.sqrt(draws))
    return Estimate(mean, (max(0.0, mean - half), min(1.0, mean + half)))


def chance_accuracy(num_classes: int) -> Accuracy:
    """What guessing would give.

    Returns:
        1 / C and min(5, C) / C.
    """
    return Accuracy(1 / num_classes, min(5, num_classes) / num_classes)


def _normalise(rows: Features) -> Features:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    directions: Features = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    return directions
