"""Names, units and descriptions of terms, per-image numbers and maps, in the order of display.

Figures, report, terminal, notebook and docs take them from here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A number in results."""

    key: str  # in results
    name: str
    description: str
    unit: str = ""  # empty for a dimensionless number
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


def _by_key(*quantities: Quantity) -> Mapping[str, Quantity]:
    return {one.key: one for one in quantities}


TERMS: Mapping[str, str] = {
    "full": "full output",
    "patches": "patches",
    "registers": "registers",
    "cls": "[CLS] itself",
    "distillation": "distillation token",
    "skip": "skip connection",
    "non_patch": "all but patches",
    "bias": "projection bias",
    "attention_total": "attention branch (t)",
    "residual_total": "residual stream (r)",
    "highest_patch": "highest patch",
}
"""Terms of the output and sums of them: their names, in the order of every legend and table."""

PHRASES: Mapping[str, str] = {
    "patches": "the patches",
    "registers": "the register tokens",
    "cls": "the [CLS] token's attention to itself",
    "distillation": "the distillation token",
    "skip": "the [CLS] token's skip connection",
}
"""Terms that are sources of the output, in sentences."""

SOURCES = tuple(PHRASES)
_GROUPS = tuple(key for key in SOURCES if key != "skip")
_ITEMS = (*SOURCES, "bias")

TOTALS: Mapping[str, str] = {"residual": "r", "attention": "t"}
"""The symbol of each total."""

PER_IMAGE: Mapping[str, Quantity] = _by_key(
    Quantity(
        "centred_share",
        "Centred share",
        "⟨c − mean c, r − mean r⟩ / ‖r − mean r‖²: the image's own part of the variance share",
        terms=SOURCES,
    ),
    Quantity(
        "share_without_bias",
        "Share, bias aside",
        "⟨c, r − bias⟩ / ‖r − bias‖²: part of the output less the bias",
        terms=SOURCES,
    ),
    Quantity(
        "share",
        "Share",
        "⟨c, r⟩ / ‖r‖²: part of the output as it is, constants included",
        terms=_ITEMS,
    ),
    Quantity(
        "attention_mass",
        "Attention mass",
        "mean over heads of the attention of [CLS] on a group of tokens",
        terms=_GROUPS,
    ),
    Quantity(
        "patch_share",
        "Patch share",
        "attention on patches over that on patches and registers",
    ),
    Quantity(
        "largest_patch_attention",
        "Largest attention on a patch",
        "attention of [CLS], mean over heads, on the patch that has most of it",
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
    ),
)
"""Numbers of each image, by key, the most informative first."""

COVARIATES: Mapping[str, Quantity] = _by_key(
    Quantity("entropy", "Entropy", "−Σ p log₂ p over the 256 grey levels", "bits"),
    Quantity(
        "edge_density",
        "Edge density",
        "part of the pixels at an edge steeper than 25 grey levels",
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
    ),
    Quantity("mean_segment", "Mean segment", "mean area of the segments, likewise"),
)
"""Measured image properties, by key; they need no labels."""

ROW_MAPS: Mapping[str, MapKind] = {
    "attention": MapKind(title="Attention", unit="% of the row", is_part=True, signed=False),
    "contribution_norm": MapKind(
        title="Value-weighted attention",
        unit="‖c_i‖, length of patch i's contribution",
        signed=False,
    ),
    "share": MapKind(
        title="Share of the row", unit="raw: % of the whole output r", is_part=True, signed=True
    ),
    "centred_share": MapKind(
        title="Centred share of the row", unit="% of r − mean r", is_part=True, signed=True
    ),
}
"""Maps of the analysed attention row, by name."""


def name_term(key: str) -> str:
    """Name of a term, token or part in legends."""
    return TERMS.get(key, key.replace("_", " "))


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
