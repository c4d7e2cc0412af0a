"""Types of a saved summary, and the only reader and writer of `summary.json`.

The file has `schema_version`, `kind`, and the fields of these classes in their order. Undefined
numbers are NaN here and null in the file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeVar

from vitscope.config import ClsTerm
from vitscope.errors import ResultError
from vitscope.files.json_files import read_json, write_json
from vitscope.files.printable import printable, printable_path
from vitscope.files.storage import MARKER
from vitscope.files.typed_json import Finite, Keys, NotEmpty, Within, read_typed
from vitscope.images.preprocessing import Preprocessing
from vitscope.metrics.distribution import Distribution
from vitscope.metrics.estimates import HighNormTokens
from vitscope.metrics.jackknife import Estimate
from vitscope.results.map_verdict import MapVerdict
from vitscope.results.schema_maps import (
    JudgedImage,
    JudgedMap,
    JudgeReference,
    KeptImage,
    MapScores,
    MapScoring,
    UsedJudgement,
)
from vitscope.results.schema_numbers import (
    Chance,
    CovariateSummary,
    ImageNumbers,
    Interdependence,
    LayerSummary,
    TopAccuracy,
    TraceSummary,
)
from vitscope.results.schema_remedies import (
    ClassifiedImages,
    ComparedRemedy,
    HighNormReference,
    JudgedImages,
)
from vitscope.results.verdict import ImageVerdict, Verdict

SCHEMA_VERSION = 5

Provenance = Mapping[str, Any]
"""How a result was made: its plan, versions, digest of the weights, or those of merged parts."""

Framing = Literal["whole", "cropped"]
"""Whether an image was only rounded to whole patches, or cropped to the input size."""
Size = tuple[Annotated[int, Within(1, 2**16)], Annotated[int, Within(1, 2**16)]]
"""(height, width) in pixels, or (rows, columns) of patches."""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The model."""

    id: str  # the id it was loaded by, or the class name of a wrapped module
    family: str  # library and architecture, such as "transformers/dinov2"
    recipe: str  # its training recipe; the family if it is not known
    size: str | None  # label of its size within the recipe; None if it is not known
    num_params: int  # parameters of the vision tower
    depth: int  # number of blocks
    embed_dim: int  # width of the residual stream
    num_heads: int  # attention heads of the analysed block
    patch_size: Size  # patch (height, width) in pixels
    num_registers: int
    global_feature: str  # "cls" or "attention pooling"
    grid: Size  # patches of an input as (rows, columns)
    dtype: str
    own_output: str = ""  # what the model returns instead of the [CLS] token; empty if that is it
    notes: tuple[str, ...] = ()  # notes on the model that matter for reading the numbers


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that change the meaning of the numbers."""

    renormalize: bool = False  # whether restricted outputs were divided by the kept attention mass
    cls_term: ClsTerm = "own"  # where [CLS]'s attention to itself is counted


@dataclass(frozen=True, kw_only=True)
class PreprocessingSummary(Preprocessing):
    """How images were prepared."""

    changed: tuple[str, ...] = ()  # fields that are not the model's own


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The images."""

    num_images: int  # distinct images behind the numbers
    num_failed: int  # images that could not be read
    num_repeated: int = 0  # images left out because an earlier one has the same bytes
    notes: tuple[str, ...] = ()  # notes on the images, in sentences


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """How well ledgers balance, over the verified images."""

    max_balance_error: float  # largest ‖t − model's t‖ / ‖model's t‖
    tolerance: Finite  # largest accepted error


@dataclass(frozen=True, kw_only=True)
class AuditLedger(LedgerSummary):
    """The four checks of an audit over all layers; NaN for a check that no layer has."""

    max_residual_error: float = float("nan")  # largest error of the residual stream
    max_block_error: float = float("nan")  # largest error of a block's output
    max_embedding_error: float = float("nan")  # largest error of the feature that the model returns
    num_verified: int  # images whose ledger was verified in every layer


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """Fields common to all kinds of results."""

    KIND: ClassVar[str]  # kind of the result, as in the file
    model: ModelSummary
    settings: Settings  # settings that change the meaning of the numbers
    preprocessing: PreprocessingSummary  # how images were prepared
    data: DataSummary

    if TYPE_CHECKING:

        @property
        def layer(self) -> int | None:
            """Index of the layer; for an audit the last one, None for a model without a row."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.id!r}, {self.data.num_images} images)"


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditSummary(Summary):
    """Every number of an audit."""

    KIND: ClassVar[str] = "audit"
    ledger: AuditLedger  # how well ledgers balance
    layers: Annotated[tuple[LayerSummary, ...], NotEmpty()]  # the audited layers, in order
    # cos(x_cls at a depth, x_cls at the last), by depth (0: the embeddings); empty for a model
    # whose stream has no [CLS] row
    layer_similarity: tuple[Distribution, ...]
    high_norm_tokens: tuple[HighNormTokens, ...]  # by depth
    trace: TraceSummary | None = None  # by depth; None if no image was traced
    covariates: CovariateSummary  # image properties, and their relation to the last audited layer
    # None for a model without registers or without a skip connection
    interdependence: Interdependence | None

    def __post_init__(self) -> None:
        indices = [layer.index for layer in self.layers]
        # An attention pooling follows the last block.
        if indices != sorted(set(indices)) or indices[-1] > self.model.depth:
            raise ResultError(f"layers {indices} of {self.model.depth} blocks cannot be")

    @property
    def last(self) -> LayerSummary:
        """The last audited layer, which is the headline."""
        return self.layers[-1]

    @property
    def layer(self) -> int:
        """Index of the last audited layer."""
        return self.last.index


@dataclass(frozen=True, kw_only=True)
class OneShotData(DataSummary):
    """The labelled images."""

    num_classes: int
    num_unlabelled: int  # images outside class folders, or with labels hidden by their dataset
    dropped_classes: tuple[str, ...]  # classes with fewer than two distinct readable images


ByPart = Annotated[Mapping[str, TopAccuracy], Keys(("full", "patches"))]
"""By the tested part of the output."""


@dataclass(frozen=True, kw_only=True, repr=False)
class OneShotSummary(Summary):
    """Every number of one-shot classification."""

    KIND: ClassVar[str] = "one-shot"
    data: OneShotData
    layer: int  # index of the layer
    draws: int  # number of draws of two images of each class
    readout: Literal["attention"]  # the readout of the headline
    # by classifier, readout and part
    accuracy: Annotated[
        Mapping[str, Annotated[Mapping[str, ByPart], Keys(("attention", "embedding"))]],
        NotEmpty(),
    ]
    chance: Chance  # accuracy of guessing


@dataclass(frozen=True, kw_only=True)
class ReferenceSummary:
    """The reference images on whose means explained images were centred."""

    # "given" by the caller, "found" next to the result, or "shipped" with vitscope
    source: Literal["given", "found", "shipped"]
    images: str  # description of the images behind the means, after the word "images"
    num_images: int  # their number
    model_id: str  # id of the model that saw them
    folder: str | None  # folder of the audit; None for means shipped with vitscope
    means_digest: str  # digest of the means


@dataclass(frozen=True, kw_only=True)
class ExplainedImage(KeptImage):
    """One explained image."""

    framing: Framing  # "whole" or "cropped"
    input_size: Size  # input of the model as (height, width) in pixels
    grid: Size  # patches as (rows, columns)
    verdict: ImageVerdict  # whether its map may be read as an explanation
    numbers: ImageNumbers
    # by map, if maps were scored: how faithful it is on this image; NaN where it is undefined
    gap: Mapping[str, float] = field(default_factory=dict)
    skill: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, repr=False)
class ExplanationSummary(Summary):
    """Every number of explained images."""

    KIND: ClassVar[str] = "explanation"
    ledger: LedgerSummary  # how well ledgers balance
    layer: int  # index of the layer
    reference: ReferenceSummary | None  # reference images; None without a reference
    references_not_used: tuple[str, ...] = ()  # why references for the same weights were not used
    judgement: UsedJudgement | None = None  # None if none was given
    scoring: MapScoring | None = None  # None if maps were not scored
    images: tuple[ExplainedImage, ...]  # the images, in order


@dataclass(frozen=True, kw_only=True, repr=False)
class JudgementSummary(Summary):
    """Every number of judged maps."""

    KIND: ClassVar[str] = "judgement"
    # block that the maps of one attention row are of; None for a model without one
    layer: int | None
    target: str  # what the maps explain
    reference: JudgeReference  # the images that the judged ones were compared with
    verdict: MapVerdict  # which map to publish
    maps: Mapping[str, JudgedMap]  # by name
    # by removal, the first of which decides, and map, also "oracle" and "random"
    removals: Annotated[Mapping[str, Mapping[str, MapScores]], NotEmpty()]
    # by removal: correlation of its single deletions with those of the other removals, which no
    # map can be expected to exceed; empty with one removal
    ceiling: Mapping[str, Estimate] = field(default_factory=dict)
    # by map: whether it lies on objects, from masks; says nothing of the model
    plausibility: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    # by map: how it changes with the weights, with the target, and with noise
    sanity: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    images: tuple[JudgedImage, ...] = ()  # some of the images, with their maps


@dataclass(frozen=True, kw_only=True, repr=False)
class RemediesSummary(Summary):
    """A model against edits of it, on the same images."""

    KIND: ClassVar[str] = "remedies"
    layer: int  # index of the layer
    verdict: Verdict  # of the original
    high_norm: HighNormReference | None  # None if the original has no high-norm patches
    one_shot: ClassifiedImages | None = None  # None if it was not asked for
    judged: JudgedImages | None = None  # None if no map was judged
    remedies: Annotated[tuple[ComparedRemedy, ...], NotEmpty()]  # in the order asked for


KINDS: tuple[type[Summary], ...] = (
    AuditSummary,
    OneShotSummary,
    ExplanationSummary,
    JudgementSummary,
    RemediesSummary,
)
S = TypeVar("S", bound=Summary)


def read_summary(folder: Path, *kinds: type[S]) -> S:
    """Read the summary of a result."""
    path = folder / MARKER
    content = read_json(path)
    found = content if isinstance(content, dict) else {}
    name = printable_path(folder)
    if (version := found.get("schema_version")) != SCHEMA_VERSION:
        raise ResultError(
            f"{name} was written with schema {_show(version)}, this version reads "
            f"{SCHEMA_VERSION}: run it again"
        )
    of_kind = {kind.KIND: kind for kind in kinds}
    if not isinstance(kind := found.get("kind"), str) or kind not in of_kind:
        raise ResultError(
            f"{name} is a result of kind {_show(kind)}: expected {' or '.join(map(repr, of_kind))}"
        )
    return read_typed(of_kind[kind], found, printable_path(path))


def write_summary(folder: Path, summary: Summary) -> None:
    """Write the summary of a result, which makes it complete."""
    head = {"schema_version": SCHEMA_VERSION, "kind": summary.KIND}
    write_json(folder / MARKER, head | asdict(summary))


def _show(value: Any) -> str:
    return shorten(printable(repr(value)), width=60, placeholder=" …")
