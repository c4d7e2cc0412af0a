"""The saved result of explained images: where their [CLS] output comes from, with maps."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import ResultError
from vitscope.ledger import Ledger, ScalarPath, compute_scalars, cosine
from vitscope.results.image_maps import ImageMaps, name_maps, read_maps, write_maps
from vitscope.results.saved_result import SavedResult, saved_summary
from vitscope.results.schema import ExplainedImage, ExplanationSummary, Framing
from vitscope.results.schema_numbers import ImageNumbers, nest
from vitscope.results.verdict import ImageVerdict
from vitscope.row_maps import map_shares_along
from vitscope.trace import ClsTrace


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ImageExplanation(ImageMaps):
    """One explained image, with maps, numbers and verdict."""

    path: str  # its file, printable
    image_id: str  # digest of its bytes
    # "whole" if it was only rounded to whole patches, "cropped" if it was cropped to the input size
    framing: Framing
    numbers: ImageNumbers
    verdict: ImageVerdict  # whether the map may be read as an explanation
    # by map, if maps were scored (docs/recipes/which-map.md)
    gap: Mapping[str, float] = field(default_factory=dict)
    skill: Mapping[str, float] = field(default_factory=dict)


class Explanation(SavedResult):
    """Explained images on disk: read access to their files."""

    summary = saved_summary(ExplanationSummary)
    """Every number of the images; `ResultError` if it is damaged or of another kind."""

    def __str__(self) -> str:
        return "\n".join(f"{one.path}: {one.verdict.text}" for one in self.summary.images)

    def __len__(self) -> int:
        return len(self.summary.images)

    @property
    def image_ids(self) -> list[str]:
        """Identity of each image, in the order of `summary.images`."""
        return [image.image_id for image in self.summary.images]

    def read_image(self, index: int) -> ImageExplanation:
        """One of the images.

        Args:
            index: Its index in `summary.images`.

        Returns:
            Its maps, numbers and verdict.

        Raises:
            ResultError: If its files are missing or damaged.
        """
        path = self.folder / name_maps(index)
        try:
            image = self.summary.images[index]
        except IndexError as error:
            raise ResultError(f"{path} cannot be read as image {index}: {error}") from None
        found = vars(read_maps(path, image.maps))
        names = [one.name for one in fields(ImageExplanation) if one.name not in found]
        return ImageExplanation(**found, **{name: getattr(image, name) for name in names})

    def save_overlays(
        self,
        folder: str | Path,
        *,
        overwrite: bool = False,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Path]:
        """Write every map of every image as PNG, alone and over the image.

        Files are IMAGE__MAP.png and IMAGE__MAP__overlay.png, of the size at which the model saw the
        image, each map on a scale of its own. `index.json` tells which image and map each file is
        of, and the values at the two ends of its scale. All files appear together, once the last
        one is written.

        Args:
            folder: Folder for the files.
            overwrite: Whether earlier overlays there are replaced.
            on_progress: Called with (images done, total) after every image.

        Returns:
            The PNG files.

        Raises:
            UsageError: If something else is in the folder.
            ResultError: If a map is missing or damaged.
            VitscopeError: If a file cannot be written.
        """
        from vitscope.figures.draw import draw_overlays  # upward, as `plot` imports

        return draw_overlays(self, folder, overwrite=overwrite, on_progress=on_progress)


def measure_image(
    ledger: Ledger, means: Mapping[str, Float[Tensor, " dim"]] | None
) -> ImageNumbers:
    """Numbers of one image; centred ones too if means are given."""
    scalars = dict(compute_scalars(ledger))
    for name, share in compute_share_without_bias(ledger).items():
        scalars["share_without_bias", name] = share
    if means is not None:
        scalars |= compute_centred(ledger, means)
    return ImageNumbers(**nest({path: float(value.item()) for path, value in scalars.items()}))


def compute_share_without_bias(ledger: Ledger) -> dict[str, Float[Tensor, " batch"]]:
    """Signed shares ⟨c_g, r − bias⟩ / ‖r − bias‖² of groups and skip, which sum to 1."""
    return _compute_shares(_varying_terms(ledger))


def compute_centred(
    ledger: Ledger, means: Mapping[str, Float[Tensor, " dim"]]
) -> dict[ScalarPath, Float[Tensor, " batch"]]:
    """Shares and cosines centred on means over other images; the bias drops out.

    With o_g = c_g − mean c_g (skip likewise), o_t their sum over groups and o_r their sum with the
    skip: shares ⟨o_g, o_r⟩ / ‖o_r‖², which sum to 1, and cosines cos(o_g, o_t), cos(o_g, o_r).
    """
    terms = {name: term - means[name] for name, term in _varying_terms(ledger).items()}
    noise = 10 * torch.finfo(ledger.contributions.dtype).eps
    totals = {"attention": list(ledger.groups), "residual": list(terms)}
    found: dict[ScalarPath, Tensor] = {}
    for total, names in totals.items():
        whole = torch.stack([terms[name] for name in names]).sum(dim=0)
        constant = whole.norm(dim=-1) <= noise * sum(float(means[name].norm()) for name in names)
        for name in names:
            lost = constant | (terms[name].norm(dim=-1) <= noise * means[name].norm())
            value = cosine(terms[name], whole)
            found["centred_cosine", total, name] = value.masked_fill(lost, math.nan)
    for name, share in _compute_shares(terms).items():  # terms of the residual, the last total
        found["centred_share", name] = share.masked_fill(constant, math.nan)
    return found


def compute_centred_map(
    trace: ClsTrace, ledger: Ledger, means: Mapping[str, Float[Tensor, " dim"]]
) -> Float[Tensor, "batch head token"] | None:
    """Map of the patches' centred share ⟨c_i − m, o_r⟩ / ‖o_r‖², which sums to it over all.

    o_r is the sum of the terms less their means, m mean c_patches over patches and heads, as an
    audit keeps the mean contribution of all patches together.
    """
    if compute_centred(ledger, means)["centred_share", "patches"].isnan().any():
        return None
    terms = _varying_terms(ledger)
    offset = torch.stack([term - means[name] for name, term in terms.items()]).sum(dim=0)
    shares = map_shares_along(trace, ledger, offset).double()
    patches = trace.layout.groups["patches"]
    parts = shares.shape[1] * (patches.stop - patches.start)
    of_mean = (offset @ means["patches"]) / (offset * offset).sum(dim=-1)
    return shares - (of_mean / parts)[:, None, None]


def _varying_terms(ledger: Ledger) -> dict[str, Float[Tensor, "batch dim"]]:
    terms = {name: term.double() for name, term in ledger.residual_terms.items()}
    terms.pop("non_patch", None)
    return terms


def _compute_shares(terms: Mapping[str, Tensor]) -> dict[str, Float[Tensor, " batch"]]:
    whole = torch.stack(list(terms.values())).sum(dim=0)
    size = (whole * whole).sum(dim=-1)
    return {name: (term * whole).sum(dim=-1) / size for name, term in terms.items()}


def write_image(folder: Path, index: int, image: ImageExplanation) -> ExplainedImage:
    """Write one image's maps."""
    name = name_maps(index)
    about = write_maps(folder / name, image)
    height, width = image.image.shape[:2]
    return ExplainedImage(
        path=image.path,
        image_id=image.image_id,
        file=name,
        maps=about,
        framing=image.framing,
        input_size=(height, width),
        grid=image.grid,
        verdict=image.verdict,
        numbers=image.numbers,
        gap=image.gap,
        skill=image.skill,
    )
