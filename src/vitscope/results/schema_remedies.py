"""Types of a saved comparison of remedies, and names of its folders."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from vitscope.files.typed_json import Finite
from vitscope.metrics.estimates import CkaEstimate as Cka
from vitscope.metrics.jackknife import Estimate
from vitscope.results.schema_numbers import Chance, TraceSummary
from vitscope.results.verdict import Verdict

COMPARISON = "comparison"
"""Folder of the comparison, beside the audits."""

ORIGINAL = "original"
"""Folder of the audit of the model itself, beside the comparison."""

ONE_SHOT, JUDGE = "one-shot", "judge"
PLACES = (".", ONE_SHOT, JUDGE)
"""Where audits and other results lie: a folder for each model, of the same name in each place."""

EDITED = re.compile(r"\d\d+-[\w-]+")
"""Folders of edited models' audits."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A number before and after an edit, over the same images."""

    before: Estimate
    after: Estimate
    difference: Estimate  # after − before, paired by image


@dataclass(frozen=True, kw_only=True)
class Drift:
    """How far the global feature f moved to f′."""

    cosine: Estimate  # mean cos(f, f′)
    cka: Cka  # CKA(f, f′)
    shared_neighbours: Estimate  # mean fraction of the nearest images that f and f′ share
    num_neighbours: int  # nearest images that are compared
    num_images: int  # images among which they are found


@dataclass(frozen=True, kw_only=True)
class MapChange:
    """How far the attention map moved, image by image; None where it cannot be told."""

    # mean over images of Spearman's correlation, over patches, of the attention before and after
    correlation: Estimate | None = None
    verdicts: Estimate | None = None  # fraction of the images whose own verdict changed


@dataclass(frozen=True, kw_only=True)
class ComparedRemedy:
    """One edit of the model against the original."""

    edit: str  # name and settings
    folder: str  # its audit, beside the comparison
    verdict: Verdict  # of the edited model
    text: str  # what changed, in a sentence
    changes: Mapping[str, Change]  # by number
    drift: Drift
    maps: MapChange = field(default_factory=MapChange)
    # shares by depth before and after; None if no image was traced, or no trace goes through the
    # edit
    traces: tuple[TraceSummary, TraceSummary | None] | None = None
    # one-shot accuracy of the global feature ("full_top1", "full_top5") and of what patches alone
    # make of it ("patches_top1", "patches_top5"), paired by draw; empty if not asked for
    one_shot: Mapping[str, Change] = field(default_factory=dict)
    # how faithful maps are, by map that both models have; empty if none was judged
    skill: Mapping[str, Change] = field(default_factory=dict)
    time_ratio: Finite  # a forward pass of the edited model over one of the original


@dataclass(frozen=True, kw_only=True)
class HighNormReference:
    """What counts as a high-norm patch before and after: what is one in the original."""

    depth: int  # the depth with most of them
    threshold: Finite  # least norm there


@dataclass(frozen=True, kw_only=True)
class ClassifiedImages:
    """The labelled images of one-shot classification, before and after alike."""

    num_images: int
    num_classes: int
    draws: int  # number of draws of two images of each class
    chance: Chance  # accuracy of guessing


@dataclass(frozen=True, kw_only=True)
class JudgedImages:
    """The images on which maps are judged, before and after alike."""

    num_images: int
    target: str  # what the maps explain
    removal: str  # how patches are removed
    maps: Mapping[str, str]  # titles of the original's maps, by name
