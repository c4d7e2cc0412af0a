"""Maps judged by what the model does when patches are removed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int

from vitscope.errors import NonFiniteError, UsageError
from vitscope.maps.method import MapInput, MapValues
from vitscope.maps.removal import Removal
from vitscope.metrics.faithfulness import (
    Order,
    Sets,
    Values,
    compute_area,
    compute_completeness,
    compute_comprehensiveness,
    compute_gap,
    compute_infidelity,
    compute_rank,
    compute_saco,
    compute_skill,
    compute_sufficiency,
    make_groups,
    make_orders,
    make_prefixes,
    make_subsets,
)

ORACLE = "oracle"
"""The order by single deletions: a reference that looked at the answer."""

RANDOM = "random"
"""Random orders: five, and each of them reversed, which passes the same sets."""

_READ_AT = {10: 0.1, 20: 0.2, 50: 0.5}
SCORES = (
    "deletion",
    "insertion",
    "gap",
    "skill",
    "rank",
    "saco",
    "infidelity",
    "completeness",
    *(f"sufficiency_{percent}" for percent in _READ_AT),
    *(f"comprehensiveness_{percent}" for percent in _READ_AT),
)
"""Scores of a map, as `vitscope.metrics.faithfulness` defines them."""

_NUM_TIE_DRAWS = 3
_NUM_RANDOM_ORDERS = 5


@dataclass(frozen=True, eq=False, kw_only=True)
class Judgement:
    """Scores of maps, image by image, with one removal."""

    removal: str  # name of the removal
    maps: tuple[str, ...]  # names of the maps, then "oracle" and "random"
    scores: Float64[np.ndarray, "image map score"]  # each of `SCORES`; NaN where it is undefined
    # s at k/16 of the patches removed, the most important first
    deletion: Float64[np.ndarray, "image map step"]
    # s at k/16 of the patches present, the most important first
    insertion: Float64[np.ndarray, "image map step"]
    # s(x) − s(x without the patch). Their `compute_rank` with those of another removal is the
    # ceiling
    deltas: Float64[np.ndarray, "image patch"]
    num_runs: Int[np.ndarray, " image"]  # forward passes for each image


def judge_images(given: MapInput, maps: Mapping[str, MapValues], removal: Removal) -> Judgement:
    """Judge maps of a batch of images, on their patches alone.

    All maps of an image get the same target, removed sets, random subsets and random order of ties,
    which depend on the image and `given.seed` alone. Scores are means over a map's orders: three if
    patches have equal values.

    Every set is run once for each image. For P patches and M maps these are at most 1 + P for the
    single deletions, 30 for the two curves of each order and 10 for its groups (M + 1 orders with
    the oracle, three times as many for maps with ties; five random ones), one without all patches,
    and 40 random subsets: P + 40 M + 282.
    """
    check_names(maps)
    for name, each in maps.items():
        if not each.values.isfinite().all():
            raise UsageError(f"the map {name!r} has NaN or infinite values: it cannot be judged")
    found = [_judge_image(given, image, maps, removal) for image in range(len(given.pixels))]
    return Judgement(removal=removal.name, maps=(*maps, ORACLE, RANDOM), **_stack(found))


def count_passes(num_patches: int, num_maps: int) -> int:
    """Forward passes for one image and removal; fewer where sets coincide, more for ties."""
    return num_patches + 40 * num_maps + 282


def check_names(maps: Iterable[str]) -> None:
    """Refuse maps that are named like what the judge has of its own."""
    for name in maps:
        if name in {ORACLE, RANDOM}:
            raise UsageError(
                f"a map is called {name!r}, and random orders and the oracle are always judged: "
                "leave it out"
            )


class _Ranking(NamedTuple):
    """A map of one image, and an order of its patches from the most important."""

    values: Values
    order: Order

    def reverse(self) -> "_Ranking":
        return _Ranking(-self.values, self.order[::-1])

    def list_sets(self) -> Sets:
        """What is removed to score it."""
        backwards = make_prefixes(self.order[::-1])
        return np.concatenate([make_prefixes(self.order), backwards, make_groups(self.order)])


def _judge_image(
    given: MapInput, image: int, maps: Mapping[str, MapValues], removal: Removal
) -> dict[str, np.ndarray]:
    num_patches = len(given.patches)
    seed = given.make_generator(image).initial_seed()
    generator = np.random.default_rng(seed)
    ties = generator.random((_NUM_TIE_DRAWS, num_patches))
    draws = generator.random((_NUM_RANDOM_ORDERS, num_patches))
    subsets = make_subsets(num_patches, generator)

    removals = _Removals(given, image, removal)
    deltas = removals.measure_drops(np.eye(num_patches, dtype=bool))
    values = {name: given.take_patches(each.values)[image] for name, each in maps.items()}
    rankings = {name: _rank(each.double().cpu().numpy(), ties) for name, each in values.items()}
    rankings[ORACLE] = _rank(deltas, ties)
    random = [_rank(draw, ties)[0] for draw in draws]
    rankings[RANDOM] = [*random, *(each.reverse() for each in random)]

    every = [ranking.list_sets() for several in rankings.values() for ranking in several]
    removals.run(np.concatenate([*every, subsets]))
    of_maps = [
        _stack([_score(ranking, removals, deltas, subsets) for ranking in several])
        for several in rankings.values()
    ]
    means = [{name: each.mean(axis=0) for name, each in found.items()} for found in of_maps]
    scored = _stack(means)
    scores = scored["scores"]
    gaps = scores[:, SCORES.index("gap")]
    scores[:, SCORES.index("skill")] = compute_skill(gaps, random=gaps[-1], oracle=gaps[-2])
    for row, each in zip(scores, maps.values(), strict=False):  # the baselines claim no sum
        if each.total is not None:
            row[SCORES.index("completeness")] = compute_completeness(
                float(each.values[image].double().sum()), float(each.total[image])
            )
    return scored | {"deltas": deltas, "num_runs": np.array(len(removals.found))}


def _rank(values: Values, ties: Float64[np.ndarray, "draw patch"]) -> list[_Ranking]:
    return [_Ranking(values, order) for order in make_orders(values, ties)]


def _stack(found: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.stack([each[name] for each in found]) for name in found[0]}


def _score(
    ranking: _Ranking, removals: "_Removals", deltas: Values, subsets: Sets
) -> dict[str, np.ndarray]:
    values, order = ranking
    groups = make_groups(order)
    sizes = groups.sum(axis=1)
    deletion = removals.measure(make_prefixes(order))
    # Inserting the most important first is removing the least important first, read backwards.
    insertion = removals.measure(make_prefixes(order[::-1]))[::-1]
    undefined = float("nan")  # needs what is not in one ranking
    found = {
        "deletion": compute_area(deletion),
        "insertion": compute_area(insertion),
        "gap": compute_gap(deletion, insertion),
        "skill": undefined,
        "rank": compute_rank(values, deltas),
        "saco": compute_saco(groups @ values / sizes, removals.measure_drops(groups) / sizes),
        "infidelity": compute_infidelity(subsets @ values, removals.measure_drops(subsets)),
        "completeness": undefined,
    }
    read_at = tuple(_READ_AT.values())
    readable = [
        *compute_sufficiency(insertion, read_at),
        *compute_comprehensiveness(deletion, read_at),
    ]
    scores = np.array([*found.values(), *readable])
    return {"scores": scores, "deletion": deletion, "insertion": insertion}


class _Removals:
    """The target of one image without sets of patches; each set is run once."""

    def __init__(self, given: MapInput, image: int, removal: Removal) -> None:
        self._given = given
        self._image = image
        self._removal = removal
        self.found: dict[bytes, float] = {}  # by set, as bytes
        self._none = np.zeros((1, len(given.patches)), dtype=bool)

    def run(self, sets: Sets) -> None:
        """Run those that have not been run."""
        new = {each.tobytes(): each for each in sets}
        wanted = [key for key in new if key not in self.found]
        if not wanted:
            return
        masks = torch.from_numpy(np.stack([new[key] for key in wanted]))
        measured = self._removal.measure(self._given, self._image, masks).double().cpu()
        if not measured.isfinite().all():
            raise NonFiniteError(
                f"with the removal {self._removal.name!r} the output of {self._given.vit.info.id} "
                "is NaN or infinite for some sets of patches: use another removal, or float32",
                image=self._image,
            )
        self.found.update(zip(wanted, measured.tolist(), strict=True))

    def measure(self, sets: Sets) -> Float64[np.ndarray, " set"]:
        """S without each set."""
        self.run(sets)
        return np.array([self.found[each.tobytes()] for each in sets])

    def measure_drops(self, sets: Sets) -> Float64[np.ndarray, " set"]:
        """What s loses without each set."""
        both = self.measure(np.concatenate([self._none, sets]))
        drops: Float64[np.ndarray, " set"] = both[0] - both[1:]
        return drops
