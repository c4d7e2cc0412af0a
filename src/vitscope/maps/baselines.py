"""Maps that do not look at the model: what a good map has to beat."""

from functools import partial

import torch

from vitscope.maps.method import MapInput, MapMethod, MapValues


def _centre(given: MapInput) -> MapValues:
    rows, columns = (
        torch.linspace(-1, 1, size, dtype=given.dtype) if size > 1 else torch.zeros(1)
        for size in given.layout.grid
    )
    # A standard deviation of a quarter of the grid is half of the way from the centre to its edge.
    distance = (rows[:, None].square() + columns.square()) / 0.5**2
    return given.place((-distance / 2).exp().flatten().expand(len(given.pixels), -1))


def _edges(given: MapInput) -> MapValues:
    grey = given.pixels.mean(dim=1)
    down, right = torch.gradient(grey, dim=(1, 2))
    energy = down.square() + right.square()
    pooled = torch.nn.functional.adaptive_avg_pool2d(energy.unsqueeze(1), given.layout.grid)
    return given.place(pooled.flatten(1))


def _random(given: MapInput) -> MapValues:
    draws = [
        torch.rand(len(given.patches), generator=given.make_generator(image))
        for image in range(len(given.pixels))
    ]
    return given.place(torch.stack(draws))


_baseline = partial(MapMethod, signed=False, targeted=False, cost="0")

METHODS = (
    _baseline(
        name="centre",
        title="Distance from the centre",
        compute=_centre,
        source="a Gaussian with a standard deviation of a quarter of the grid",
    ),
    _baseline(
        name="edges",
        title="Edges in the image",
        compute=_edges,
        source="mean squared gradient of grey values",
    ),
    _baseline(
        name="random",
        title="Random numbers",
        compute=_random,
        source="uniform, seeded by the image",
    ),
)
