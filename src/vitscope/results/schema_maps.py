"""Types of saved maps, and of a judgement of maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Annotated

from vitscope.files.typed_json import NotEmpty
from vitscope.metrics.jackknife import Estimate
from vitscope.results.map_verdict import Comparison, MapVerdict
from vitscope.results.vocabulary import MapKind


@dataclass(frozen=True, kw_only=True)
class MapSummary(MapKind):
    """One map of one image: what its file of arrays does not say."""

    target: str | None = None  # the number that is explained; None for a map without one
    # sum of its values by what is no patch: registers, [CLS]; for shares also skip and bias
    unplaced: Mapping[str, float]
    total: float | None = None  # what all values should sum to; None if the method claims no sum


ByMap = Annotated[Mapping[str, MapSummary], NotEmpty()]
"""By name of the map, in the order of display."""


@dataclass(frozen=True, kw_only=True)
class JudgedMap:
    """A map that was judged."""

    title: str
    signed: bool  # whether a value below zero speaks against the target
    targeted: bool  # whether it depends on the target
    source: str  # the publication, or what it is
    # mean time per image on the run's machine; a pass that maps share counts for the first
    seconds: float = nan


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """Scores of a map, or of a baseline, with one removal."""

    scores: Mapping[str, Estimate]  # by score, mean over images (docs/recipes/which-map.md)
    deletion: tuple[float, ...]  # mean s at k/16 of the patches removed, most important first
    insertion: tuple[float, ...]  # mean s at k/16 of the patches present, most important first
    against_attention: Comparison | None  # None for attention, or for a model without it


@dataclass(frozen=True, kw_only=True)
class KeptImage:
    """An image that is kept with its maps."""

    path: str  # its file, printable
    image_id: str  # digest of its bytes
    file: str  # file of its maps in the result's folder
    maps: ByMap


@dataclass(frozen=True, kw_only=True)
class JudgedImage(KeptImage):
    """A judged image that is kept with its maps."""

    skill: Mapping[str, float]  # by map, with the first removal; NaN where it is undefined


@dataclass(frozen=True, kw_only=True)
class JudgeReference:
    """The images that the judged ones were compared with."""

    # "the judged images", those of all shards; or "given"
    source: str
    num_images: int
    digest: str = ""  # of their identities, in order


@dataclass(frozen=True, kw_only=True)
class MapScoring:
    """How the maps of explained images were scored."""

    removal: str  # how patches were removed
    target: str  # what was measured


@dataclass(frozen=True, kw_only=True)
class UsedJudgement:
    """The judgement by which the map of an explanation was chosen."""

    folder: str
    num_images: int
    verdict: MapVerdict  # which map to publish
    # the map that is drawn by default: the one to publish, or else the one that comes first; None
    # if maps were named
    drawn: str | None
