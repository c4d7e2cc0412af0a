"""Maps made by running the model with patches missing."""

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from vitscope.extras import require_package
from vitscope.maps.method import MapInput, MapMethod, MapValues, check_row

_SETS_PER_PATCH = 4
_ROUNDS = 16
"""Random sets are drawn in rounds; those of a round keep the same number of patches, so that they
run as one batch. The number differs between rounds, as independent draws would make it."""

_CENTROIDS = 1024
_CX_DISTANCE = 0.1
_CX_NOISE = 0.1


def _map_each(
    map_one: Callable[[MapInput, int], Float[Tensor, " patch"]], given: MapInput
) -> MapValues:
    return given.place(torch.stack([map_one(given, i) for i in range(len(given.pixels))]))


def _delete_each(given: MapInput, image: int) -> Float[Tensor, " patch"]:
    num = len(given.patches)
    others = ~torch.eye(num, dtype=torch.bool)
    kept = index_kept(others).to(given.pixels.device)
    return given.scores[image] - given.measure_sets(image, kept=kept)


def index_kept(mask: Bool[Tensor, "sets patch"]) -> Tensor:
    """Indices of the patches that a set keeps; all sets keep the same number."""
    return mask.nonzero()[:, 1].reshape(len(mask), int(mask[0].sum()))


def _regress(given: MapInput) -> MapValues:
    found = [_regress_one(given, image) for image in range(len(given.pixels))]
    values, errors = (torch.stack(each) for each in zip(*found, strict=True))
    return MapValues(values=given.place(values).values, error=given.place(errors).values)


def _regress_one(given: MapInput, image: int) -> tuple[Tensor, Tensor]:
    # s = b + Σ_j m_j [j kept] + noise, by least squares.
    num = len(given.patches)
    generator = given.make_generator(image)
    masks, scores = [], []
    per_round = -(-_SETS_PER_PATCH * num // _ROUNDS)
    for _ in range(_ROUNDS):
        count = int((torch.rand(num, generator=generator) < 0.5).sum().clamp(1, num - 1))
        ranks = torch.rand(per_round, num, generator=generator).argsort(dim=1)
        mask = ranks < count
        scores.append(given.measure_sets(image, kept=index_kept(mask).to(given.pixels.device)))
        masks.append(mask)
    design = torch.cat(masks).double()
    design = torch.cat([torch.ones(len(design), 1), design], dim=1)
    answer = torch.cat(scores).double().cpu()
    inverse = torch.linalg.inv(design.T @ design)
    coefficients = inverse @ (design.T @ answer)
    residual = answer - design @ coefficients
    variance = residual.square().sum() / (len(design) - num - 1)
    errors = (variance * inverse.diagonal()).sqrt()
    return coefficients[1:], errors[1:]


def _tis(given: MapInput, image: int) -> Float[Tensor, " patch"]:
    # Every channel of every block's output is a curve over the patches; centroids of these curves
    # propose which half of the patches to keep.
    require_package("sklearn", "scikit-learn", needed_by="the map tis")
    from sklearn.cluster import KMeans  # slow to import

    streams = given.own.streams[1:]
    curves = torch.cat([given.take_patches(stream)[image] for stream in streams], dim=1).T
    kept = len(given.patches) // 2
    centroids = KMeans(
        n_clusters=min(_CENTROIDS, len(curves)), n_init=1, random_state=given.seed, max_iter=50
    ).fit(curves.float().cpu().numpy())
    proposals = torch.from_numpy(centroids.cluster_centers_)
    chosen = proposals.topk(kept, dim=1).indices.sort(dim=1).values
    scores = given.measure_sets(image, kept=chosen.to(given.pixels.device)).cpu().double()
    mask = torch.zeros(len(chosen), len(given.patches), dtype=torch.float64)
    mask.scatter_(1, chosen, 1.0)
    return (scores @ mask) / mask.sum(dim=0).clamp(min=1)


def _vit_cx(given: MapInput, image: int) -> Float[Tensor, " patch"]:
    # Channels of the tokens that the last attention reads, grouped by their cosine, are masks.
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import

    normed = given.read_normed(given.own)
    channels = _stretch(given.take_patches(normed)[image].T.float())
    tree = linkage(channels.cpu().numpy(), method="complete", metric="cosine")
    groups = torch.from_numpy(fcluster(tree, _CX_DISTANCE, criterion="distance")).long() - 1
    sums = torch.zeros(int(groups.max()) + 1, channels.shape[1])
    sums.index_add_(0, groups, channels.cpu())
    masks = _stretch(sums).to(given.pixels)
    own = given.pixels[image]
    grids = masks.reshape(-1, 1, *given.layout.grid)
    smooth = interpolate(grids, size=own.shape[-2:], mode="bilinear")
    noise = _CX_NOISE * torch.randn(own.shape, generator=given.make_generator(image)).to(own)
    masked = own * smooth + noise * (1 - smooth)
    background = own + noise * (1 - smooth)
    scores = given.measure_sets(image, pixels=masked) - given.measure_sets(image, pixels=background)
    scores = scores + given.scores[image]
    weighted = (scores.unsqueeze(1) * masks).sum(dim=0) / masks.sum(dim=0).clamp(min=1e-6)
    return weighted / len(masks)


def _stretch(rows: Float[Tensor, "row patch"]) -> Float[Tensor, "row patch"]:
    # To [0, 1]; rows without variation are left out.
    low, high = rows.amin(dim=1, keepdim=True), rows.amax(dim=1, keepdim=True)
    varied = (high > low).squeeze(1)
    return ((rows - low) / (high - low).clamp(min=1e-12))[varied]


METHODS = (
    MapMethod(
        name="single_deletion",
        title="Deletion of each patch",
        unit="s(x) − s(x without the patch)",
        compute=partial(_map_each, _delete_each),
        signed=True,
        targeted=True,
        cost="P",
        source="s(x) − s(x without the patch)",
    ),
    MapMethod(
        name="random_keep",
        title="Regression on random halves",
        unit="s with the patch − s without it",
        compute=_regress,
        signed=True,
        targeted=True,
        cost="2 P",
        source="as RISE (Petsiuk et al., BMVC 2018), by least squares with standard errors",
    ),
    MapMethod(
        name="tis",
        title="TIS",
        compute=partial(_map_each, _tis),
        signed=False,
        targeted=True,
        cost="about 550",
        source="Englebert et al. (ICCV Workshops 2023)",
    ),
    MapMethod(
        name="vit_cx",
        title="ViT-CX",
        compute=partial(_map_each, _vit_cx),
        check=check_row,
        signed=False,
        targeted=True,
        cost="2 for each group of channels",
        source="Xie et al. (IJCAI 2023)",
    ),
)
