"""Features averaged over shifted and flipped views of an image."""

from itertools import product
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from vitscope.errors import UsageError
from vitscope.maps.passes import run_blocks
from vitscope.models.base import Pixels, ViTAdapter

_LARGEST_SHIFT = 0.15  # of the grid
_SEED = 42


class AveragedViews(NamedTuple):
    """What a model makes of an image, averaged over views.

    Attributes:
        feature: The mean global feature.
        patches: The last block's output on patches; each is the mean over the views that saw it.
    """

    feature: Float[Tensor, "batch out"]
    patches: Float[Tensor, "batch patch dim"]


def average_views(
    vit: ViTAdapter, pixels: Pixels, *, num_shifts: int = 5, seed: int = _SEED
) -> AveragedViews:
    """Average a model's features over shifts and horizontal flips of its images.

    Shifts are by whole patches, at most 0.15 of the grid, and as far from each other as they can
    be; the first is by 0. Every shift is run as it is and flipped, so it costs 2 · `num_shifts`
    forward passes. Where a shift leaves a gap, the border of the image is repeated, and what the
    model makes of these patches is dropped.

    No attention row makes the mean of several runs, so that it has no ledger and is not audited.

    Args:
        vit: The model, which may be an edited one.
        pixels: Preprocessed images, on the model's device.
        num_shifts: Number of shifts; fewer if the grid has not as many.
        seed: Seed of the choice between shifts that are equally far.

    Returns:
        The features, in the order of the images and of the patches.

    Raises:
        UsageError: If `num_shifts` is less than 1.

    Source:
        The teacher of PH-Reg (NeurIPS 2025), without the training of a student.
    """
    if num_shifts < 1:
        raise UsageError(f"num_shifts was given as {num_shifts}: expected 1 or more")
    layout = vit.make_layout(*pixels.shape[-2:])
    rows, columns = layout.grid
    features: list[Tensor] = []
    total = torch.zeros(())
    counts = torch.zeros(rows, columns, 1, device=pixels.device)
    for shift in choose_shifts(rows, columns, num_shifts, seed):
        shifted = _shift(pixels, shift, (rows, columns))
        (rows_here, rows_seen), (here, seen) = _match(shift[0], rows), _match(shift[1], columns)
        for is_flipped in (False, True):
            run = run_blocks(vit, shifted.flip(-1) if is_flipped else shifted)
            features.append(run.feature)
            grid = layout.take_patches(run.streams[-1]).reshape(len(pixels), rows, columns, -1)
            grid = grid.flip(2) if is_flipped else grid
            if not total.ndim:
                total = torch.zeros_like(grid)
            total[:, rows_here, here] += grid[:, rows_seen, seen]
            counts[rows_here, here] += 1
    mean = total / counts.to(total)
    return AveragedViews(torch.stack(features).mean(dim=0), mean.flatten(1, 2))


def choose_shifts(rows: int, columns: int, count: int, seed: int) -> list[tuple[int, int]]:
    """Shifts in patches, downwards and to the right, each the farthest from those before it."""
    largest = [int(_LARGEST_SHIFT * size) for size in (rows, columns)]
    grid = torch.tensor(list(product(*(range(-n, n + 1) for n in largest))))
    order = torch.randperm(len(grid), generator=torch.Generator().manual_seed(seed))
    candidates = grid[order].double()
    chosen = torch.zeros(1, 2, dtype=torch.float64)
    for _ in range(min(count, len(grid)) - 1):
        farthest = torch.cdist(candidates, chosen).min(dim=1).values.argmax()
        chosen = torch.cat([chosen, candidates[farthest, None]])
    return [(int(down), int(right)) for down, right in chosen]


def _match(shift: int, size: int) -> tuple[slice, slice]:
    # Places in the image and in the view, where place i of the image is at i + shift.
    first, last = max(0, -shift), min(size, size - shift)
    return slice(first, last), slice(first + shift, last + shift)


def _shift(pixels: Pixels, shift: tuple[int, int], grid: tuple[int, int]) -> Pixels:
    for axis, (steps, count) in enumerate(zip(shift, grid, strict=True), start=2):
        size = pixels.shape[axis]
        places = torch.arange(size, device=pixels.device) - steps * (size // count)
        pixels = pixels.index_select(axis, places.clamp(0, size - 1))
    return pixels
