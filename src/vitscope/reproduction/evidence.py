"""What was measured of each model: numbers with intervals, or the reason why there is none."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitscope.errors import UsageError
from vitscope.figures.numbers import Interval, find, number
from vitscope.results.verdict import MIN_IMAGES_TO_JUDGE

Data = Literal["COCO", "ImageNet", "one-shot"]
Summary = Mapping[str, Any]

MIN_IMAGES = MIN_IMAGES_TO_JUDGE
"""The same as for the verdict, and for the same reason."""
MIN_IMAGES_WITHOUT_INTERVAL = 100
"""For numbers that have no interval, so that 5 % of the images are five or more."""

_KINDS = {"COCO": "audit", "ImageNet": "audit on ImageNet", "one-shot": "one-shot result"}


@dataclass(frozen=True)
class ModelEvidence:
    """All there is of one model.

    Attributes:
        recipe: Training recipe, such as "DINOv2 with registers".
        size: Label of the size, such as "S" or "B/16"; None where it has none.
        num_params: Parameters of the vision tower.
        audit: Summary of the audit on the main set of images, where there is one.
        imagenet: Summary of the audit on the second set.
        one_shot: Summary of the one-shot classification.
        absent: Why a summary is not there, by set of images, where the reason is known.
    """

    recipe: str
    size: str | None
    num_params: int
    audit: Summary | None = None
    imagenet: Summary | None = None
    one_shot: Summary | None = None
    absent: Mapping[Data, str] = field(default_factory=dict)

    def summary(self, data: Data) -> Summary | None:
        """What was measured on one set of images."""
        return {"COCO": self.audit, "ImageNet": self.imagenet, "one-shot": self.one_shot}[data]


class UntoldError(Exception):
    """A summary does not hold a number; the message ends a sentence that begins with its name."""


@dataclass(frozen=True)
class Reading(Interval):
    """A number with its 95 % interval.

    Attributes:
        note: Another number to show beside it.
    """

    note: str = ""


@dataclass(frozen=True)
class Quantity:
    """A number that every summary of a kind may hold.

    Attributes:
        name: In words.
        source: Where it comes from in the summary.
        read: Reads it; raises UntoldError where it is missing.
        min_images: Images that it takes to say anything.
    """

    name: str
    source: str
    read: Callable[[Summary], Reading]
    min_images: int = MIN_IMAGES


@dataclass(frozen=True)
class Measured:
    """A quantity of one model.

    Attributes:
        model: Recipe and size.
        size: Size alone.
        quantity: What was measured.
        reading: The number; None where there is none.
        count: Images that it is over.
        gap: Why nothing can be told by it; empty where something can.
    """

    model: str
    size: str
    quantity: Quantity
    reading: Reading | None
    count: int
    gap: str

    @property
    def ends(self) -> tuple[float, float]:
        """Ends of its interval; only where there is no gap."""
        assert self.reading is not None
        assert self.reading.low is not None
        assert self.reading.high is not None
        return self.reading.low, self.reading.high


def check_different(models: Sequence[ModelEvidence]) -> None:
    """Refuse two models that a claim could not tell apart."""
    seen: set[tuple[str, str]] = set()
    for model in models:
        if model.size is None:
            continue
        if (key := (model.recipe, model.size)) in seen:
            raise UsageError(f"{' '.join(key)} is given twice: give one model per recipe and size")
        seen.add(key)


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
    """One number of every size of a recipe that was measured, smallest first."""
    there = [
        model
        for model in _order(models)
        if model.recipe == recipe
        and model.summary(data) is not None
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
    summary = model.summary(data)
    if summary is None:
        gap = model.absent.get(data) or f"no {_KINDS[data]} of {name}"
        return Measured(name, size, quantity, None, 0, gap)
    count = count_images(summary)
    try:
        reading = quantity.read(summary)
    except UntoldError as reason:
        return Measured(name, size, quantity, None, count, f"{name}: {quantity.name} {reason}")
    gap = ""
    if count < quantity.min_images:
        gap = f"{name}: n = {count}, {quantity.name} needs {quantity.min_images} images"
    elif reading.low is None or reading.high is None:
        gap = f"{name}: {quantity.name} has no interval"
    return Measured(name, size, quantity, reading, count, gap)


def count_images(summary: Summary) -> int:
    """Images that a summary is over."""
    return int(number(find(summary, "data", "num_images")) or 0)


def _order(models: Sequence[ModelEvidence]) -> list[ModelEvidence]:
    named = [model for model in models if model.size is not None]
    return sorted(named, key=lambda model: (model.num_params, str(model.size)))


def _letter(model: ModelEvidence) -> str:
    return str(model.size).split("/")[0]
