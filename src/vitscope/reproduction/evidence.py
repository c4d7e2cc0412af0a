"""Measurements of each model: numbers with intervals, or the reason why there are none."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitscope.errors import UsageError
from vitscope.figures.intervals import Interval
from vitscope.results.schema import Summary
from vitscope.results.verdict import MIN_IMAGES_TO_JUDGE

Data = Literal["COCO", "ImageNet", "one-shot"]
Ends = tuple[float, float]

MIN_IMAGES = MIN_IMAGES_TO_JUDGE
"""As for the verdict, for the same reason."""
MIN_IMAGES_WITHOUT_INTERVAL = 100
"""For numbers without an interval: at least five images in each 5 % tail."""

_KINDS = {"COCO": "audit", "ImageNet": "audit on ImageNet", "one-shot": "one-shot result"}


@dataclass(frozen=True)
class ModelEvidence:
    """All results of one model."""

    recipe: str  # training recipe, such as "DINOv2 with registers"
    size: str | None  # label of the size, such as "S" or "B/16"; None if it has none
    num_params: int
    summaries: Mapping[Data, Summary] = field(default_factory=dict)
    absent: Mapping[Data, str] = field(default_factory=dict)  # why a summary is missing


class UntoldError(Exception):
    """A summary lacks a number; the message completes a sentence that begins with its name."""


@dataclass(frozen=True)
class Reading(Interval):
    """A number with its 95 % interval."""

    note: str = ""  # another number to show with it


@dataclass(frozen=True)
class Quantity:
    """A number that a kind of summary may have."""

    name: str
    source: str  # where it is in the summary
    read: Callable[[Any], Reading]  # raises UntoldError if it is missing
    min_images: int = MIN_IMAGES  # fewest images for a decision


@dataclass(frozen=True)
class Measured:
    """A quantity of one model."""

    size: str
    quantity: Quantity
    reading: Reading | None  # the number; None if there is none
    count: int  # number of images behind it
    gap: str  # why it cannot decide a claim; empty if it can

    @property
    def ends(self) -> Ends:
        """Ends of its interval; NaN if it has none."""
        if self.reading is None or self.reading.low is None or self.reading.high is None:
            return math.nan, math.nan
        return self.reading.low, self.reading.high


def check_different(models: Sequence[ModelEvidence]) -> None:
    """Refuse two models of the same recipe and size, which claims cannot distinguish."""
    named = [f"{model.recipe} {model.size}" for model in models if model.size is not None]
    for name in named:
        if named.count(name) > 1:
            raise UsageError(f"{name} is given twice: give one model per recipe and size")


def measure(
    models: Sequence[ModelEvidence], data: Data, recipe: str, size: str, quantity: Quantity
) -> Measured:
    """One number of one model."""
    for model in _order(models):
        if model.recipe == recipe and _letter(model) == size:
            return _read(model, data, quantity)
    return _read(ModelEvidence(recipe, size, 0), data, quantity)


def measure_sizes(
    models: Sequence[ModelEvidence],
    data: Data,
    recipe: str,
    quantity: Quantity,
    *,
    needed: Sequence[str],
    among: Sequence[str] | None = None,
) -> list[Measured]:
    """One number of every measured size of a recipe, smallest first."""
    there = [
        model
        for model in _order(models)
        if model.recipe == recipe
        and data in model.summaries
        and (among is None or _letter(model) in among)
    ]
    missing = [size for size in needed if size not in map(_letter, there)]
    return [
        *(_read(model, data, quantity) for model in there),
        *(measure(models, data, recipe, size, quantity) for size in missing),
    ]


def _read(model: ModelEvidence, data: Data, quantity: Quantity) -> Measured:
    size = str(model.size)
    name = f"{model.recipe} {size}"
    summary = model.summaries.get(data)
    if summary is None:
        gap = model.absent.get(data) or f"no {_KINDS[data]} of {name}"
        return Measured(size, quantity, None, 0, gap)
    count = summary.data.num_images
    try:
        reading = quantity.read(summary)
    except UntoldError as reason:
        return Measured(size, quantity, None, count, f"{name}: {quantity.name} {reason}")
    gap = ""
    if count < quantity.min_images:
        gap = f"{name}: n = {count}, {quantity.name} needs {quantity.min_images} images"
    elif reading.low is None or reading.high is None:
        gap = f"{name}: {quantity.name} has no interval"
    return Measured(size, quantity, reading, count, gap)


def _order(models: Sequence[ModelEvidence]) -> list[ModelEvidence]:
    named = [model for model in models if model.size is not None]
    return sorted(named, key=lambda model: (model.num_params, str(model.size)))


def _letter(model: ModelEvidence) -> str:
    return str(model.size).split("/")[0]
