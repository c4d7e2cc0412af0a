"""Names, units and descriptions of terms, per-image numbers and maps, in the order of display.

Figures, report, terminal, notebook and docs take them from here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar


@dataclass(frozen=True)
class Term:
    """A term of the output, or a sum of terms."""

    key: str  # in results
    name: str  # in legends
    phrase: str  # in sentences
    description: str
    is_source: bool = False  # a token group or the skip connection


@dataclass(frozen=True)
class Quantity:
    """A number in results."""

    key: str  # in results
    name: str
    description: str
    unit: str = ""  # empty for a dimensionless number
    is_part: bool = False  # whether it is a fraction, to be shown in percent
    totals: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()

    def list_paths(self) -> Iterator[tuple[str, ...]]:
        """Its paths in a summary."""
        for total in self.totals or (None,):
            for term in self.terms or (None,):
                yield tuple(part for part in (self.key, total, term) if part is not None)


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """What a reader must know of a map besides its numbers."""

    title: str
    unit: str = ""  # what its numbers are
    is_part: bool = False  # whether they are fractions, to be shown in percent
    signed: bool  # whether a number below zero speaks against what is explained


Entry = TypeVar("Entry", Term, Quantity)


def _by_key(entries: Iterable[Entry]) -> Mapping[str, Entry]:
    return MappingProxyType({entry.key: entry for entry in entries})


TERMS: Mapping[str, Term] = _by_key(
    [
        Term("full", "full output", "the full output", "the output with nothing left out"),
        Term(
            "patches",
            "patches",
            "the patches",
            "what [CLS] reads from the patch tokens, the only part that a map can show",
            is_source=True,
        ),
        Term(
            "registers",
            "registers",
            "the register tokens",
            "what [CLS] reads from the register tokens",
            is_source=True,
        ),
        Term(
            "cls",
            "[CLS] itself",
            "the [CLS] token's attention to itself",
            "what [CLS] reads from itself by attention",
            is_source=True,
        ),
        Term(
            "distillation",
            "distillation token",
            "the distillation token",
            "what [CLS] reads from the second summary token of distilled DeiT",
            is_source=True,
        ),
        Term(
            "skip",
            "skip connection",
            "the [CLS] token's skip connection",
            "what [CLS] was before the block, which the skip connection adds",
            is_source=True,
        ),
        Term(
            "non_patch",
            "all but patches",
            "all but the patches",
            "r less the patches' term and the bias",
        ),
        Term(
            "bias",
            "projection bias",
            "the bias",
            "bias of the output projection, the same for every image",
        ),
        Term(
            "attention_total",
            "attention branch (t)",
            "the attention branch's output t",
            "t, the sum of what all tokens write and the bias",
        ),
        Term(
            "residual_total",
            "residual stream (r)",
            "the residual stream r",
            "r, the sum of t and the skip connection",
        ),
        Term(
            "highest_patch",
            "highest patch",
            "the patch of the highest norm",
            "the patch token that has the highest norm of its image",
        ),
    ]
)
"""By key, in the order of every legend and table."""

SOURCES = tuple(key for key, term in TERMS.items() if term.is_source)
"""Terms that are sources of the output."""
_GROUPS = tuple(key for key in SOURCES if key != "skip")
_ITEMS = (*SOURCES, "bias")

TOTALS: Mapping[str, str] = MappingProxyType({"residual": "r", "attention": "t"})
"""The symbol of each total."""

PER_IMAGE: Mapping[str, Quantity] = _by_key(
    [
        Quantity(
            "centred_share",
            "Centred share",
            "⟨c − mean c, r − mean r⟩ / ‖r − mean r‖²: the image's own part of the variance share",
            is_part=True,
            terms=SOURCES,
        ),
        Quantity(
            "share_without_bias",
            "Share, bias aside",
            "⟨c, r − bias⟩ / ‖r − bias‖²: part of the output less the bias",
            is_part=True,
            terms=SOURCES,
        ),
        Quantity(
            "share",
            "Share",
            "⟨c, r⟩ / ‖r‖²: part of the output as it is, constants included",
            is_part=True,
            terms=_ITEMS,
        ),
        Quantity(
            "attention_mass",
            "Attention mass",
            "mean over heads of the attention of [CLS] on a group of tokens",
            is_part=True,
            terms=_GROUPS,
        ),
        Quantity(
            "patch_share",
            "Patch share",
            "attention on patches over that on patches and registers",
            is_part=True,
        ),
        Quantity(
            "largest_patch_attention",
            "Largest attention on a patch",
            "attention of [CLS], mean over heads, on the patch that has most of it",
            is_part=True,
        ),
        Quantity(
            "attention_entropy",
            "Entropy of attention",
            "how evenly attention lies on patches: 0 if all on one, 1 if the same on each",
        ),
        Quantity(
            "centred_cosine",
            "Centred cosine",
            "cos(c − mean c, r − mean r), and with t: of what differs between images",
            totals=tuple(TOTALS),
            terms=(*SOURCES, "non_patch"),
        ),
        Quantity(
            "cosine",
            "Cosine",
            "cos(c, r), and with t: of outputs as they are, constants included",
            totals=tuple(TOTALS),
            terms=(*SOURCES, "non_patch"),
        ),
        Quantity(
            "restricted_cosine",
            "Restricted cosine",
            "cos(c + bias, t): what attending to one group alone would give, against t",
            totals=("attention",),
            terms=_GROUPS,
        ),
        Quantity(
            "contribution_norm",
            "Length of contribution",
            "‖c‖: length of what a term adds, or of a total",
            terms=(*_ITEMS, "attention_total", "residual_total"),
        ),
        Quantity("token_norm", "Norm", "norm of a token at the input of the audited block"),
        Quantity(
            "highest_patch_norm",
            "Highest patch norm",
            "largest norm of a patch token at a depth",
        ),
        Quantity(
            "median_patch_norm",
            "Median patch norm",
            "median norm of the patch tokens at the input of the audited block",
        ),
        Quantity(
            "layer_similarity",
            "Layer similarity",
            "cos(x at a depth, x at the last depth) of the [CLS] token",
        ),
        Quantity(
            "balance_error",
            "Error of the balance",
            "‖t − model's t‖ / ‖model's t‖, of the attention branch",
        ),
        Quantity(
            "residual_error",
            "Error of the residual stream",
            "the same of the input of the MLP's norm",
        ),
        Quantity("block_error", "Error of the block", "the same of the block's output"),
        Quantity(
            "embedding_error",
            "Error of the embedding",
            "the same of the feature that the model returns",
        ),
        Quantity(
            "level_range",
            "Range of levels",
            "part of the range from black to white that the image uses",
            is_part=True,
        ),
    ]
)
"""Numbers of each image, by key, the most informative first."""

COVARIATES: Mapping[str, Quantity] = _by_key(
    [
        Quantity("entropy", "Entropy", "−Σ p log₂ p over the 256 grey levels", "bits"),
        Quantity(
            "edge_density",
            "Edge density",
            "part of the pixels at an edge steeper than 25 grey levels",
            is_part=True,
        ),
        Quantity(
            "colourfulness",
            "Colourfulness",
            "spread and mean of red − green and of yellow − blue (Hasler & Süsstrunk 2003)",
        ),
        Quantity(
            "spatial_frequency",
            "Spatial frequency",
            "mean frequency of the grey image, weighted by its power",
            "cycles per pixel",
        ),
        Quantity(
            "saliency_concentration",
            "Saliency concentration",
            "Gini coefficient of the spectral residual's saliency map",
        ),
        Quantity("num_segments", "Segments", "segments in the image's mask"),
        Quantity(
            "largest_segment",
            "Largest segment",
            "area of the largest segment as a part of the image",
            is_part=True,
        ),
        Quantity(
            "mean_segment", "Mean segment", "mean area of the segments, likewise", is_part=True
        ),
    ]
)
"""Measured image properties, by key; they need no labels."""


ROW_MAPS: Mapping[str, MapKind] = MappingProxyType(
    {
        "attention": MapKind(
            title="Attention",
            unit="% of the row",
            is_part=True,
            signed=False,
        ),
        "contribution_norm": MapKind(
            title="Value-weighted attention",
            unit="‖c_i‖, length of patch i's contribution",
            signed=False,
        ),
        "share": MapKind(
            title="Share of the row",
            unit="raw: % of the whole output r",
            is_part=True,
            signed=True,
        ),
        "centred_share": MapKind(
            title="Centred share of the row",
            unit="% of r − mean r",
            is_part=True,
            signed=True,
        ),
    }
)
"""Maps of the analysed attention row, by name."""


def name_term(key: str) -> str:
    """Name of a term, token or part in legends."""
    return TERMS[key].name if key in TERMS else key.replace("_", " ")


def name_token(key: str) -> str:
    """Name of a single token in legends; as a term, "cls" is [CLS]'s attention to itself."""
    return "[CLS]" if key == "cls" else name_term(key)


def look_of(key: str) -> str:
    """The term whose colour and shape a token or term has: every register has that of registers."""
    return "registers" if key.startswith("register_") else key


def name_covariate(key: str) -> str:
    """Name of an image property in headings."""
    return COVARIATES[key].name if key in COVARIATES else name_term(key)


def order_terms(keys: Iterable[str]) -> list[str]:
    """Terms in the order of every legend."""
    places = {key: place for place, key in enumerate(TERMS)}
    return sorted(keys, key=lambda key: (places.get(key, len(places)), key))
