"""A claim of the paper, and the ways to compare one with the models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitscope.reproduction.comparisons import Check, all_of, in_order
from vitscope.reproduction.evidence import Data, Measured, ModelEvidence, Quantity, measure

Models = Sequence[ModelEvidence]
Test = Callable[[Measured], Check]

PLAIN, REGISTERS = "DINOv2", "DINOv2 with registers"


@dataclass(frozen=True)
class Claim:
    """A statement of the paper with the criterion that stands for it."""

    where: str
    statement: str
    criterion: str  # when the measurement agrees
    check: Callable[[Models], Check]
    data: Data = "COCO"


def check_each(
    recipe: str, sizes: str, quantity: Quantity, test: Test, data: Data = "COCO"
) -> Callable[[Models], Check]:
    """A test that every one of some sizes must pass."""
    return lambda models: all_of(
        [test(measure(models, data, recipe, size, quantity)) for size in sizes]
    )


def compare_in_giant(
    models: Models, smaller: Quantity, larger: Quantity, data: Data = "COCO"
) -> Check:
    """Whether one number of giant with registers is smaller than another."""
    return in_order(*(measure(models, data, REGISTERS, "g", q) for q in (smaller, larger)))
