"""Paired differences: between audits that share images, and of edits from their original."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from vitscope.figures.description import FigureData, NothingToDrawError, Point, select, write_range
from vitscope.figures.intervals import Interval, read_estimate, span
from vitscope.figures.saved import ModelResult, printable
from vitscope.results.choices import LAYER, RENORMALIZE, count_cls, enumerate_labels
from vitscope.results.remedy_text import DECIDING, NUMBERS, name_number
from vitscope.results.schema_remedies import ComparedRemedy
from vitscope.results.verdict import MIN_IMAGES
from vitscope.results.vocabulary import SOURCES

if TYPE_CHECKING:
    from vitscope.results.paired_audits import ReplicatedAudit

Opened = tuple[ModelResult, "ReplicatedAudit"]

CHANGES = {**DECIDING, "moved": "cos(f, f′) − 1"}
"""What is shown of each edit, in words: whether maps are cleaner, whether truer, and the price."""

_SAME = 1e-6
"""Numbers that differ by less are the same: sums of float32, in another order."""


@dataclass(frozen=True, eq=False)
class AuditPair:
    """Two audits, of which images that both have are compared."""

    first: Opened
    other: Opened

    @property
    def label(self) -> str:
        """Which is subtracted from which."""
        return f"{self.other[0].label} less {self.first[0].label}"

    @cached_property
    def shared(self) -> frozenset[str]:
        """Identities of the images of both."""
        return frozenset(self.first[1].ids).intersection(self.other[1].ids)

    @property
    def is_whole(self) -> bool:
        """Whether they have no other images."""
        return len(self.shared) == max(len(audit.ids) for _, audit in (self.first, self.other))

    @property
    def is_enough(self) -> bool:
        """Whether they can be compared."""
        return self.is_whole or len(self.shared) >= MIN_IMAGES

    @property
    def has_sums(self) -> bool:
        """Whether CKA and variance shares of the shared images are known."""
        return all(audit.among(self.shared).has_sums for _, audit in (self.first, self.other))

    @cached_property
    def points(self) -> list[Point]:
        """The differences."""
        from vitscope.results.paired_audits import make_changes, pair_audits

        audits = (audit.among(self.shared) for _, audit in (self.first, self.other))
        changes = make_changes(pair_audits(*audits))
        return [
            Point(
                model=self.other[0],
                panel=self.first[0].label,
                term=name,
                x=name_number(name),
                number=number,
            )
            for name in sorted(changes, key=[*NUMBERS, *changes].index)
            if (number := read_estimate(changes[name].difference, len(self.shared))) is not None
        ]

    def tell_same(self, pairs: Iterable["AuditPair"]) -> str:
        """Which of two results, its own or those of other pairs, has the same numbers; or none."""
        known = {self.first[0].label: 0 * self._numbers}
        for pair in pairs:
            if (pair.first, pair.shared, pair._terms) == (self.first, self.shared, self._terms):
                known[pair.other[0].label] = pair._numbers
        for label, numbers in known.items():
            if np.all(abs(self._numbers - numbers) <= _SAME):
                return (
                    f"{self.other[0].label} agrees with {label} on {len(self.shared):,} images: "
                    f"no number of the last audited block differs by more than {_SAME:.6f}"
                )
        return ""

    @property
    def _terms(self) -> list[str]:
        return [point.term for point in self.points]

    @property
    def _numbers(self) -> np.ndarray:
        return np.array([_list_numbers(point.number) for point in self.points])


def describe_differences(results: Iterable[ModelResult]) -> FigureData:
    """Each audit less an earlier one, over the images that both have."""
    choices = [count_cls(*SOURCES), RENORMALIZE, LAYER]
    selection = select(results, _open, choices=choices)
    paired = list(find_pairs(selection.found))
    if not paired:
        raise NothingToDrawError(
            f"no two of the results have the same images, or {MIN_IMAGES} in common"
        )
    pairs = [pair for pair in paired if pair.points]
    if not pairs:
        raise NothingToDrawError("of the images that two results share, no number is defined")
    same = {pair: pair.tell_same(pairs[:place]) for place, pair in enumerate(pairs)}
    differ = [pair for pair, told in same.items() if not told]
    if not differ:
        raise NothingToDrawError("; ".join(same.values()))
    points = [point for pair in differ for point in pair.points]
    # Without registers, all attention on patches and registers is on patches.
    changed = {point.term for point in points if max(map(abs, _list_numbers(point.number))) > _SAME}
    points = [point for point in points if point.term in changed]
    return selection.describe(
        points,
        list(_take_notes(selection.found, paired, same)),
        axis="difference",
        limits=span([point.number for point in points], 0.0),
    )


def _open(result: ModelResult) -> "ReplicatedAudit":
    # Reading sums needs torch.
    from vitscope.results.audit_result import AuditResult
    from vitscope.results.paired_audits import ReplicatedAudit

    audit = ReplicatedAudit(AuditResult(result.folder))
    audit.replicate_cka()  # raises if it cannot be read
    return audit


def find_pairs(found: Sequence[Opened]) -> Iterator[AuditPair]:
    """Each audit with the first before it that shares at least half as many images as any."""
    for place, other in enumerate(found):
        pairs = [pair for first in found[:place] if (pair := AuditPair(first, other)).is_enough]
        most = max((len(pair.shared) for pair in pairs), default=0)
        yield from [pair for pair in pairs if 2 * len(pair.shared) >= most][:1]


def _take_notes(
    found: Sequence[Opened], pairs: Sequence[AuditPair], same: Mapping[AuditPair, str]
) -> Iterator[str]:
    differ = [pair for pair, told in same.items() if not told]
    counts = write_range(len(pair.shared) for pair in differ)
    yield (
        f"n = {counts} images, those of both results: paired by image, so that what images have in "
        "common drops out. 0 is no difference. Bar: 95 % interval."
    )
    parts = [pair for pair in differ if not pair.is_whole]
    yield from _list("Not all images are in both results", map(_tell_counts, parts))
    yield from _list(
        "Without CKA and variance shares, which a part of the images has only if features are kept",
        [pair.label for pair in parts if not pair.has_sums],
    )
    yield from (f"{told}." for told in same.values() if told)
    undefined = [pair.label for pair in pairs if pair not in same]
    yield from _list("No number is defined on the images of both", undefined)
    yield from _tell_unpaired(found, pairs)


def _tell_unpaired(found: Sequence[Opened], pairs: Sequence[AuditPair]) -> Iterator[str]:
    paired = {id(one) for pair in pairs for one in (pair.first, pair.other)}
    most = {
        one[0].label: max(len(AuditPair(one, other).shared) for other in found if other is not one)
        for one in found
        if id(one) not in paired
    }
    counts = {label: f"{label} (at most {count:,})" for label, count in most.items() if count}
    few = [told for label, told in counts.items() if most[label] < MIN_IMAGES]
    many = [told for label, told in counts.items() if most[label] >= MIN_IMAGES]
    yield from _list(f"Fewer than {MIN_IMAGES} images in common with another result", few)
    yield from _list(
        f"Not compared, because every result with {MIN_IMAGES} or more images in common is "
        "compared with another",
        many,
    )
    yield from _list(
        "Without another result of the same images", [one for one in most if not most[one]]
    )


def _list(what: str, labels: Iterable[str]) -> list[str]:
    told = enumerate_labels(list(labels))
    return [f"{what}: {told}."] if told else []


def _tell_counts(pair: AuditPair) -> str:
    other, first = len(pair.other[1].ids), len(pair.first[1].ids)
    return f"{pair.label} ({len(pair.shared):,} of {other:,} and {first:,})"


def _list_numbers(number: Interval) -> tuple[float, ...]:
    return (number.value, *number.ends)


def describe_remedies(results: Iterable[ModelResult]) -> FigureData:
    """Differences of each edit from the original, and how far it moved the global feature."""
    selection = select(results, lambda one: one.remedies, kind="remedies")
    points = [
        Point(model=model, term=name, x=printable(one.edit), number=number)
        for model, summary in selection.found
        for one in summary.remedies
        for name in CHANGES
        if (number := _read_change(one, name)) is not None
    ]
    if not points:
        raise NothingToDrawError("no difference is defined")
    return selection.describe(
        points,
        (
            f"{selection.n}. Edited less original, paired by image: 0 is no "
            "change. Bar: 95 % interval. cos(f, f′) − 1: 0 if the edit leaves the global feature "
            "f as it is.",
        ),
        axis="change",
        limits=span([point.number for point in points], 0.0),
    )


def _read_change(one: ComparedRemedy, name: str) -> Interval | None:
    if name == "moved":
        cosine = read_estimate(one.drift.cosine)
        return None if cosine is None else cosine.change(lambda value: value - 1)
    return read_estimate(one.changes[name].difference) if name in one.changes else None
