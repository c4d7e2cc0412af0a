"""Types of a saved judgement of maps."""

from collections.abc import Mapping
from dataclasses import dataclass

from vitscope.metrics.jackknife import Estimate
from vitscope.results.map_verdict import Comparison


@dataclass(frozen=True, kw_only=True)
class JudgedMap:
    """A map that was judged."""

    title: str
    signed: bool  # whether a value below zero speaks against the target
    targeted: bool  # whether it depends on the target
    source: str  # the publication, or what it is
    seconds: float  # mean time per image on the run's machine


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """Scores of a map, or of a baseline, with one removal."""

    scores: Mapping[str, Estimate]  # by score, mean over images (docs/maps.md)
    deletion: tuple[float, ...]  # mean s at k/16 of the patches removed, most important first
    insertion: tuple[float, ...]  # mean s at k/16 of the patches present, most important first
    against_attention: Comparison | None  # None for attention, or for a model without it


@dataclass(frozen=True, kw_only=True)
class JudgeReference:
    """The images that the judged ones were compared with."""

    source: str  # "the judged images themselves", or "given"
    num_images: int
