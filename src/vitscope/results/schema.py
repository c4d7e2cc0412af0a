"""Types of a saved summary, and the only reader and writer of `summary.json`.

The file has `schema_version`, `kind`, and the fields of these classes in their order. Undefined
numbers are NaN here and null in the file.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from vitscope.results.schema_numbers import (
    Chance,
    CovariateSummary,
    ImageNumbers,
    Interdependence,
    LayerSummary,
    TopAccuracy,
)
from vitscope.results.verdict import ImageVerdict

SCHEMA_VERSION = 4

Framing = Literal["whole", "cropped"]
"""Whether an image was only rounded to whole patches, or cropped to the input size."""
Size = tuple[Annotated[int, Within(1, 2**16)], Annotated[int, Within(1, 2**16)]]
"""(height, width) in pixels, or (rows, columns) of patches."""


@dataclass(frozen=True, kw_only=True)
class ModelSummary:
    """The model.

    Attributes:
        id: The id it was loaded by, or the class name of a wrapped module.
        family: Library and architecture, such as "transformers/dinov2".
        recipe: Its training recipe; the family if it is not known.
        size: Label of its size within the recipe; None if it is not known.
        num_params: Parameters of the vision tower.
        depth: Number of blocks.
        embed_dim: Width of the residual stream.
        num_heads: Attention heads of the analysed block.
        patch_size: Patch (height, width) in pixels.
        num_registers: Register tokens.
        global_feature: "cls" or "attention pooling".
        grid: Patches of an input as (rows, columns).
        dtype: Precision it ran in.
        notes: Notes on the model that matter for reading the numbers.
    """

    id: str
    family: str
    recipe: str
    size: str | None
    num_params: int
    depth: int
    embed_dim: int
    num_heads: int
    patch_size: Size
    num_registers: int
    global_feature: str
    grid: Size
    dtype: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that change the meaning of the numbers.

    Attributes:
        renormalize: Whether restricted outputs were divided by the kept attention mass.
        cls_term: Where [CLS]'s attention to itself is counted.
    """

    renormalize: bool = False
    cls_term: ClsTerm = "own"


@dataclass(frozen=True, kw_only=True)
class PreprocessingSummary(Preprocessing):
    """How images were prepared.

    Attributes:
        changed: Fields that are not the model's own.
    """

    changed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataSummary:
    """The images.

    Attributes:
        num_images: Distinct images behind the numbers.
        num_failed: Images that could not be read.
        num_repeated: Images left out because an earlier one has the same bytes.
        notes: Notes on the images, in sentences.
    """

    num_images: int
    num_failed: int
    num_repeated: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LedgerSummary:
    """How well ledgers balance, over the verified images.

    Attributes:
        max_balance_error: Largest ‖t − model's t‖ / ‖model's t‖.
        tolerance: Largest accepted error.
    """

    max_balance_error: float
    tolerance: Finite


@dataclass(frozen=True, kw_only=True)
class AuditLedger(LedgerSummary):
    """The four checks of an audit over all layers; NaN for a check that no layer has.

    Attributes:
        max_residual_error: Largest error of the residual stream.
        max_block_error: Largest error of a block's output.
        max_embedding_error: Largest error of the feature that the model returns.
        num_verified: Images whose ledger was verified in every layer.
    """

    max_residual_error: float = float("nan")
    max_block_error: float = float("nan")
    max_embedding_error: float = float("nan")
    num_verified: int


@dataclass(frozen=True, kw_only=True, repr=False)
class Summary:
    """Fields common to all kinds of results.

    Attributes:
        KIND: Kind of the result, as in the file.
        model: The model.
        settings: Settings that change the meaning of the numbers.
        preprocessing: How images were prepared.
        data: The images.
    """

    KIND: ClassVar[str]
    model: ModelSummary
    settings: Settings
    preprocessing: PreprocessingSummary
    data: DataSummary

    if TYPE_CHECKING:

        @property
        def layer(self) -> int:
            """Index of the layer; for an audit the last one."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.model.id!r}, {self.data.num_images} images)"


@dataclass(frozen=True, kw_only=True, repr=False)
class AuditSummary(Summary):
    """Every number of an audit.

    Attributes:
        ledger: How well ledgers balance.
        layers: The audited layers, in order.
        layer_similarity: cos(x_cls at a depth, x_cls at the last), by depth (0: the embeddings);
            empty for a model whose stream has no [CLS] row.
        high_norm_tokens: By depth.
        covariates: Image properties, and their relation to the last audited layer.
        interdependence: None for a model without registers or without a skip connection.
    """

    KIND: ClassVar[str] = "audit"
    ledger: AuditLedger
    layers: Annotated[tuple[LayerSummary, ...], NotEmpty()]
    layer_similarity: tuple[Distribution, ...]
    high_norm_tokens: tuple[HighNormTokens, ...]
    covariates: CovariateSummary
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
    """The labelled images.

    Attributes:
        num_classes: Number of classes.
        num_unlabelled: Images outside class folders, or with labels hidden by their dataset.
        dropped_classes: Classes with fewer than two distinct readable images.
    """

    num_classes: int
    num_unlabelled: int
    dropped_classes: tuple[str, ...]


ByPart = Annotated[Mapping[str, TopAccuracy], Keys(("full", "patches"))]
"""By the tested part of the output."""


@dataclass(frozen=True, kw_only=True, repr=False)
class OneShotSummary(Summary):
    """Every number of one-shot classification.

    Attributes:
        data: The labelled images.
        layer: Index of the layer.
        draws: Number of draws of two images of each class.
        readout: The readout of the headline.
        accuracy: By classifier, readout and part.
        chance: Accuracy of guessing.
    """

    KIND: ClassVar[str] = "one-shot"
    data: OneShotData
    layer: int
    draws: int
    readout: Literal["attention"]
    accuracy: Annotated[
        Mapping[str, Annotated[Mapping[str, ByPart], Keys(("attention", "embedding"))]],
        NotEmpty(),
    ]
    chance: Chance


@dataclass(frozen=True, kw_only=True)
class ReferenceSummary:
    """The reference images on whose means explained images were centred.

    Attributes:
        source: "given" by the caller, "found" next to the result, or "shipped" with vitscope.
        images: Description of the images behind the means, after the word "images".
        num_images: Their number.
        model_id: Id of the model that saw them.
        folder: Folder of the audit; None for means shipped with vitscope.
        means_digest: Digest of the means.
    """

    source: Literal["given", "found", "shipped"]
    images: str
    num_images: int
    model_id: str
    folder: str | None
    means_digest: str


@dataclass(frozen=True, kw_only=True)
class ExplainedImage:
    """One explained image.

    Attributes:
        path: Its file, printable.
        image_id: Digest of its bytes.
        maps: File of its maps in the result's folder.
        framing: "whole" or "cropped".
        input_size: Input of the model as (height, width) in pixels.
        grid: Patches as (rows, columns).
        verdict: Whether its map may be read as an explanation.
        numbers: Its numbers.
    """

    path: str
    image_id: str
    maps: str
    framing: Framing
    input_size: Size
    grid: Size
    verdict: ImageVerdict
    numbers: ImageNumbers


@dataclass(frozen=True, kw_only=True, repr=False)
class ExplanationSummary(Summary):
    """Every number of explained images.

    Attributes:
        ledger: How well ledgers balance.
        layer: Index of the layer.
        reference: Reference images; None without a reference.
        references_not_used: Why references for the same weights were not used.
        images: The images, in order.
    """

    KIND: ClassVar[str] = "explanation"
    ledger: LedgerSummary
    layer: int
    reference: ReferenceSummary | None
    references_not_used: tuple[str, ...] = ()
    images: tuple[ExplainedImage, ...]


KINDS: tuple[type[Summary], ...] = (AuditSummary, OneShotSummary, ExplanationSummary)
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
