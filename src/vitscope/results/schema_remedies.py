"""Types of a saved comparison of remedies."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitscope.files.typed_json import Finite
from vitscope.metrics.estimates import CkaEstimate as Cka
from vitscope.metrics.jackknife import Estimate
from vitscope.results.schema_numbers import TraceSummary
from vitscope.results.verdict import Verdict


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
class ComparedRemedy:
    """One edit of the model against the original."""

    edit: str  # name and settings
    folder: str  # its audit, beside the comparison
    verdict: Verdict  # of the edited model
    text: str  # what changed, in a sentence
    changes: Mapping[str, Change]  # by number
    drift: Drift
    # shares by depth before and after; None if no image was traced, or no trace goes through the
    # edit
    traces: tuple[TraceSummary, TraceSummary | None] | None = None
    time_ratio: Finite  # a forward pass of the edited model over one of the original


@dataclass(frozen=True, kw_only=True)
class HighNormReference:
    """What counts as a high-norm patch before and after: what is one in the original."""

    depth: int  # the depth with most of them
    threshold: Finite  # least norm there
