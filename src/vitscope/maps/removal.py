"""Removing patches from an image, in several ways, to see what the output loses."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float
from scipy.ndimage import gaussian_filter
from torch import Tensor

from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.layout import TokenLayout
from vitscope.maps.method import MapInput
from vitscope.maps.perturbation import index_kept
from vitscope.models.base import Pixels

Removed = Bool[Tensor, "sets patch"]

_SETS_AT_ONCE = 64
"""Sets whose tokens or pixels are made at once."""

_NEIGHBOURS = {
    (row, column): 1 / 6 if 0 in {row, column} else 1 / 12
    for row in (-1, 0, 1)
    for column in (-1, 0, 1)
    if (row, column) != (0, 0)
}
_NOISE = 0.01


@dataclass(frozen=True, eq=False)
class Removal:
    """A way to remove patches."""

    name: str  # its name in results and options
    title: str  # what a person reads
    # from the input, the index of an image and sets of patches to the target of the image without
    # each set. It costs one forward pass a set, in batches
    measure: Callable[[MapInput, int, Removed], Float[Tensor, " sets"]]
    source: str  # the publication, or what is done


def _replace_tokens(
    find: Callable[[MapInput, int], Float[Tensor, "patch dim"]],
    given: MapInput,
    image: int,
    removed: Removed,
) -> Float[Tensor, " sets"]:
    # `find` gives the tokens that take the patches' places at depth 0.
    own, found = given.tokens[image : image + 1], []
    others = own.clone()
    given.take_patches(others)[0] = find(given, image)
    for part in torch.split(removed.to(own.device), _SETS_AT_ONCE):
        replaced = part.new_zeros(len(part), own.shape[1])
        given.take_patches(replaced)[:] = part
        tokens = torch.where(replaced.unsqueeze(-1), others, own)
        found.append(given.measure_sets(image, tokens=tokens))
    return torch.cat(found)


def _find_tokens_of_another(given: MapInput, image: int) -> Float[Tensor, "patch dim"]:
    references = given.compare("the removal 'shuffle'")
    own = given.identity[image]
    others = [i for i, other in enumerate(references.lenders) if not torch.equal(other, own)]
    if not others:
        raise UsageError(
            "the removal 'shuffle' takes tokens of another image, and the only reference image is "
            "the image itself: give other references, or choose the removal 'mean'"
        )
    generator = given.make_generator(image)
    chosen = others[int(torch.randint(len(others), (), generator=generator))]
    return given.take_patches(references.lent_tokens)[chosen]


def _find_mean_tokens(given: MapInput, _: int) -> Float[Tensor, "patch dim"]:
    return given.take_patches(given.compare("the removal 'mean'").mean_tokens.unsqueeze(0))[0]


def reads_patches_alone(layout: TokenLayout) -> bool:
    """Whether nothing is left to read the output from without patches."""
    read = range(layout.num_tokens) if layout.averaged is None else layout.averaged
    return bool(read == layout.groups["patches"])


def _drop(given: MapInput, image: int, removed: Removed) -> Float[Tensor, " sets"]:
    counts = removed.sum(dim=1)
    if reads_patches_alone(given.layout) and bool((counts == len(given.patches)).any()):
        raise UnsupportedModelError(
            f"the output of {given.vit.info.id} is read from the patches alone, so that they "
            "cannot all be dropped: use another removal than 'drop'"
        )
    found = torch.empty(len(removed), dtype=given.dtype, device=given.tokens.device)
    for count in sorted(set(counts.tolist())):
        same = (counts == count).nonzero().squeeze(1)
        kept = index_kept(~removed[same]).to(found.device)
        found[same.to(found.device)] = given.measure_sets(image, kept=kept)
    return found


def _replace_pixels(
    fill: Callable[[MapInput, int, Bool[Tensor, "sets height width"]], Pixels],
    given: MapInput,
    image: int,
    removed: Removed,
) -> Float[Tensor, " sets"]:
    # `fill` gives the pixels that take the place of missing ones: for each set, or one for all.
    own, found = given.pixels[image], []
    for part in torch.split(removed.to(own.device), _SETS_AT_ONCE):
        missing = _enlarge(given, part)
        pixels = torch.where(missing.unsqueeze(1), fill(given, image, missing), own)
        found.append(given.measure_sets(image, pixels=pixels))
    return torch.cat(found)


def _enlarge(given: MapInput, removed: Removed) -> Bool[Tensor, "sets height width"]:
    (rows, columns), (height, width) = given.layout.grid, given.pixels.shape[-2:]
    grids = removed.reshape(-1, rows, columns)
    return grids.repeat_interleave(height // rows, 1).repeat_interleave(width // columns, 2)


def _blur(given: MapInput, image: int, _: Tensor) -> Pixels:
    own = given.pixels[image]
    patch = [side // cells for side, cells in zip(own.shape[-2:], given.layout.grid, strict=True)]
    blurred = gaussian_filter(own.cpu().numpy(), sigma=(0, *patch))
    return torch.from_numpy(blurred).to(own).unsqueeze(0)


def _blacken(given: MapInput, _: int, __: Tensor) -> Pixels:
    mean, std = _read_normalisation(given)
    return -mean / std


def _impute(given: MapInput, image: int, missing: Bool[Tensor, "sets height width"]) -> Pixels:
    own = given.pixels[image]
    smooth = np.stack(
        [impute_linear(own.cpu().numpy(), each) for each in missing.cpu().numpy()],
    )
    # The published noise is that of levels from 0 to 1. It is the same in every set.
    noise = _NOISE * torch.randn(own.shape, generator=given.make_generator(image)).to(own)
    return torch.from_numpy(smooth).to(own) + noise / _read_normalisation(given)[1]


def _read_normalisation(given: MapInput) -> tuple[Pixels, Pixels]:
    preprocessing = given.vit.preprocessing
    mean, std = (
        given.pixels.new_tensor(levels).reshape(1, -1, 1, 1)
        for levels in (preprocessing.mean, preprocessing.std)
    )
    return mean, std


def impute_linear(
    pixels: Float[np.ndarray, "channel height width"], missing: Bool[np.ndarray, "height width"]
) -> Float[np.ndarray, "channel height width"]:
    """Fill in missing pixels so that each is the weighted mean of its neighbours.

    The four nearest neighbours have weight 1/6, the four diagonal ones 1/12; at the border of the
    image the weights of those that exist are scaled up. Where nothing is known, every pixel becomes
    0, the mean of the preprocessing.
    """
    from scipy.sparse import csc_array  # slow to import
    from scipy.sparse.linalg import spsolve

    if missing.all():
        return np.zeros_like(pixels)
    num = int(missing.sum())
    # A border of one pixel, which is neither known nor missing.
    index = np.pad(np.where(missing, np.cumsum(missing).reshape(missing.shape) - 1, -1), 1)
    unknown, inside = np.pad(missing, 1), np.pad(np.ones_like(missing), 1)
    known = np.pad(np.where(missing, 0, pixels), ((0, 0), (1, 1), (1, 1)))
    at = np.nonzero(unknown)
    diagonal, right = np.zeros(num), np.zeros((num, len(pixels)))
    rows, columns, entries = [np.arange(num)], [np.arange(num)], [diagonal]
    for (down, across), weight in _NEIGHBOURS.items():
        there = (at[0] + down, at[1] + across)
        diagonal += weight * inside[there]
        right += weight * known[:, there[0], there[1]].T
        coupled = unknown[there]
        rows.append(np.nonzero(coupled)[0])
        columns.append(index[there][coupled])
        entries.append(np.full(int(coupled.sum()), -weight))
    places = (np.concatenate(rows), np.concatenate(columns))
    matrix = csc_array((np.concatenate(entries), places), shape=(num, num))
    filled = pixels.copy()
    filled[:, missing] = spsolve(matrix, right).T
    return filled


REMOVALS: Mapping[str, Removal] = {
    removal.name: removal
    for removal in (
        Removal(
            "shuffle",
            "Token of another image",
            partial(_replace_tokens, _find_tokens_of_another),
            "the token at that place of a reference image, drawn once for each image",
        ),
        Removal(
            "drop", "Token left out", _drop, "Jain et al. (ICLR 2022): the sequence becomes shorter"
        ),
        Removal(
            "mean",
            "Mean token",
            partial(_replace_tokens, _find_mean_tokens),
            "the mean token at that place over the references",
        ),
        Removal(
            "blur",
            "Blurred pixels",
            partial(_replace_pixels, _blur),
            "a Gaussian with a standard deviation of one patch",
        ),
        Removal(
            "black",
            "Black pixels",
            partial(_replace_pixels, _blacken),
            "level 0 before normalisation",
        ),
        Removal(
            "linear",
            "Interpolated pixels",
            partial(_replace_pixels, _impute),
            "ROAD (Rong et al., ICML 2022): noisy linear imputation",
        ),
    )
}
"""All removals by name; the first is the default."""


def find_removal(name: str) -> Removal:
    """Find a removal."""
    if name not in REMOVALS:
        raise UsageError(f"no removal is called {name!r}: choose from {', '.join(REMOVALS)}")
    return REMOVALS[name]
