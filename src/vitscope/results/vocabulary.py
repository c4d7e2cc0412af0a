"""Names, units and descriptions of terms, per-image numbers and maps, in the order of display.

Figures, report, terminal, notebook and docs take them from here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quantity:
    """A number in results."""

    name: str
    description: str
    unit: str = ""  # empty for a dimensionless number
    totals: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()

    def list_paths(self, key: str) -> Iterator[tuple[str, ...]]:
        """Its paths in a summary, by its key there."""
        for total in self.totals or (None,):
            for term in self.terms or (None,):
                yield tuple(part for part in (key, total, term) if part is not None)


@dataclass(frozen=True, kw_only=True)
class MapKind:
    """What a reader must know of a map besides its numbers."""

    title: str
    unit: str = ""  # what its numbers are
    is_part: bool = False  # whether they are fractions, to be shown in percent
    signed: bool  # whether a number below zero speaks against what is explained


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

PER_IMAGE: Mapping[str, Quantity] = {
    "centred_share": Quantity(
        "Centred share",
        "⟨c − mean c, r − mean r⟩ / ‖r − mean r‖²: the image's own part of the variance share",
        terms=SOURCES,
    ),
    "share_without_bias": Quantity(
        "Share, bias aside",
        "⟨c, r − bias⟩ / ‖r − bias‖²: part of the output less the bias",
        terms=SOURCES,
    ),
    "share": Quantity(
        "Share",
        "⟨c, r⟩ / ‖r‖²: part of the output as it is, constants included",
        terms=_ITEMS,
    ),
    "attention_mass": Quantity(
        "Attention mass",
        "mean over heads of the attention of [CLS] on a group of tokens",
        terms=_GROUPS,
    ),
    "patch_share": Quantity(
        "Patch share",
        "attention on patches over that on patches and registers",
    ),
    "largest_patch_attention": Quantity(
        "Largest attention on a patch",
        "attention of [CLS], mean over heads, on the patch that has most of it",
    ),
    "attention_entropy": Quantity(
        "Entropy of attention",
        "how evenly attention lies on patches: 0 if all on one, 1 if the same on each",
    ),
    "centred_cosine": Quantity(
        "Centred cosine",
        "cos(c − mean c, r − mean r), and with t: of what differs between images",
        totals=tuple(TOTALS),
        terms=(*SOURCES, "non_patch"),
    ),
    "cosine": Quantity(
        "Cosine",
        "cos(c, r), and with t: of outputs as they are, constants included",
        totals=tuple(TOTALS),
        terms=(*SOURCES, "non_patch"),
    ),
    "restricted_cosine": Quantity(
        "Restricted cosine",
        "cos(c + bias, t): what attending to one group alone would give, against t",
        totals=("attention",),
        terms=_GROUPS,
    ),
    "contribution_norm": Quantity(
        "Length of contribution",
        "‖c‖: length of what a term adds, or of a total",
        terms=(*_ITEMS, "attention_total", "residual_total"),
    ),
    "token_norm": Quantity("Norm", "norm of a token at the input of the audited block"),
    "highest_patch_norm": Quantity(
        "Highest patch norm",
        "largest norm of a patch token at a depth",
    ),
    "median_patch_norm": Quantity(
        "Median patch norm",
        "median norm of the patch tokens at the input of the audited block",
    ),
    "layer_similarity": Quantity(
        "Layer similarity",
        "cos(x at a depth, x at the last depth) of the [CLS] token",
    ),
    "balance_error": Quantity(
        "Error of the balance",
        "‖t − model's t‖ / ‖model's t‖, of the attention branch",
    ),
    "residual_error": Quantity(
        "Error of the residual stream",
        "the same of the input of the MLP's norm",
    ),
    "block_error": Quantity("Error of the block", "the same of the block's output"),
    "embedding_error": Quantity(
        "Error of the embedding",
        "the same of the feature that the model returns",
    ),
    "level_range": Quantity(
        "Range of levels",
        "part of the range from black to white that the image uses",
    ),
}
"""Numbers of each image, by key, the most informative first."""

COVARIATES: Mapping[str, Quantity] = {
    "entropy": Quantity("Entropy", "−Σ p log₂ p over the 256 grey levels", "bits"),
    "edge_density": Quantity(
        "Edge density",
        "part of the pixels at an edge steeper than 25 grey levels",
    ),
    "colourfulness": Quantity(
        "Colourfulness",
        "spread and mean of red − green and of yellow − blue (Hasler & Süsstrunk 2003)",
    ),
    "spatial_frequency": Quantity(
        "Spatial frequency",
        "mean frequency of the grey image, weighted by its power",
        "cycles per pixel",
    ),
    "saliency_concentration": Quantity(
        "Saliency concentration",
        "Gini coefficient of the spectral residual's saliency map",
    ),
    "num_segments": Quantity("Segments", "segments in the image's mask"),
    "largest_segment": Quantity(
        "Largest segment",
        "area of the largest segment as a part of the image",
    ),
    "mean_segment": Quantity("Mean segment", "mean area of the segments, likewise"),
}
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
