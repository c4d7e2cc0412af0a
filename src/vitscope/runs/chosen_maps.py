"""The maps that a run makes of single images, and what they need."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from vitscope.config import AuditConfig
from vitscope.errors import UsageError
from vitscope.images.image_set import ImageSet
from vitscope.maps.chosen_target import ChosenTarget, choose_target
from vitscope.maps.judgement import SCORES, check_names, judge_images
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.references import make_references
from vitscope.maps.registry import check_maps, find_methods
from vitscope.maps.removal import find_removal
from vitscope.maps.targets import tell_without_mean
from vitscope.maps.token_maps import DEFAULT_MAPS
from vitscope.models.base import ViTAdapter
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.image_maps import ImageMap, place_map
from vitscope.results.schema_maps import MapScoring
from vitscope.results.vocabulary import ROW_MAPS
from vitscope.runs.model_run import ModelRun


class ChosenMaps:
    """Maps by name, checked before the work.

    Those of the attention row come with a run's own pass; `methods` makes the others. `scoring` is
    None unless they are scored.
    """

    def __init__(
        self,
        names: Sequence[str],
        dtype: torch.dtype,
        target: ChosenTarget,
        *,
        has_references: bool,
        scored: bool = False,
    ) -> None:
        if not names:
            raise UsageError(f"maps was given as {names!r}: expected names, such as ['attention']")
        found = find_methods(names)
        self.target = target
        check_maps(found, self.target, has_references=has_references)
        self.names = tuple(method.name for method in found)
        self.methods = tuple(method for method in found if method.name not in ROW_MAPS)
        self.scoring: MapScoring | None = None
        if scored:
            check_names(self.names)
            if self.target.compares and not has_references:
                raise UsageError(tell_without_mean(self.target.told))
            removal = "shuffle" if has_references else "drop"
            self.scoring = MapScoring(removal=removal, target=self.target.told)
        comparing = ["the score of a map"] * scored + [method.name for method in self.methods]
        if comparing and dtype in HALF_PRECISIONS:
            name = str(dtype).removeprefix("torch.")
            raise UsageError(
                f"{comparing[0]} compares numbers that {name} rounds to the same: use float32"
            )

    @property
    def needs_own_pass(self) -> bool:
        """Whether any needs more of the model's own run than the attention row."""
        return self.scoring is not None or bool(self.methods)

    @property
    def _is_targeted(self) -> bool:
        return self.scoring is not None or any(method.targeted for method in self.methods)

    def check_used(self, **given: object) -> None:
        """Refuse a target or references that no map depends on."""
        used = {
            "target": self._is_targeted,
            "references": self._is_targeted or any(method.compares for method in self.methods),
        }
        for name, value in given.items():
            if value is not None and not used[name]:
                raise UsageError(
                    f"{name} is set, but no map depends on it ({', '.join(self.names)}): add one "
                    "that does to maps, or leave it out"
                )

    def describe_target(self) -> dict[str, str]:
        """What the maps explain, for the provenance; nothing if none depends on it."""
        return self.target.describe() if self._is_targeted else {}

    def compute(self, given: MapInput) -> dict[str, ImageMap]:
        """The maps of one image that are not of the row; a map that is not finite is left out."""
        made = {
            method.name: place_values(method, given, method.compute(given))
            for method in self.methods
        }
        return {name: one for name, one in made.items() if _is_finite(one)}

    def score(
        self, given: MapInput, maps: Mapping[str, ImageMap]
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Gap and skill of each map of one image; empty if they were not asked for."""
        if self.scoring is None:
            return {}, {}
        placed = {name: _place_patches(given, one) for name, one in maps.items()}
        judged = judge_images(given, placed, find_removal(self.scoring.removal))
        of_maps = judged.scores[0, : len(maps)].T.tolist()  # the last two rows are of baselines
        gap, skill = (
            dict(zip(maps, of_maps[SCORES.index(score)], strict=True)) for score in ("gap", "skill")
        )
        return gap, skill

    def arrange(self, found: Mapping[str, ImageMap]) -> dict[str, ImageMap]:
        """Maps in the order in which they were named, each centred one after the raw one."""
        names = [name for one in self.names for name in (one, f"centred_{one}")]
        return {name: found[name] for name in names if name in found}


def place_values(method: MapMethod, given: MapInput, made: MapValues) -> ImageMap:
    """A method's map of a single image, on the patch grid."""
    return place_map(
        method,
        given.layout,
        made.values[0],
        error=None if made.error is None else made.error[0],
        total=None if made.total is None else float(made.total[0]),
        target=given.target.name if method.targeted else None,
    )


def _place_patches(given: MapInput, one: ImageMap) -> MapValues:
    values = torch.zeros(1, given.num_tokens, dtype=torch.float64)
    given.take_patches(values)[0] = torch.from_numpy(one.values).double().flatten()
    return MapValues(values=values)


def _is_finite(one: ImageMap) -> bool:
    return all(np.isfinite(part).all() for part in (one.values, one.error) if part is not None)


def choose_gallery_maps(vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> ChosenMaps:
    """The maps of a gallery, whose images are compared with each other."""
    if config.maps is not None and not config.gallery:
        raise UsageError("maps is set, but gallery is 0: no image is kept to be mapped")
    names = DEFAULT_MAPS if config.maps is None else config.maps
    num_kept = min(config.gallery, len(images))
    if num_kept < 2 and any(method.compares for method in find_methods(names)):
        raise UsageError(
            f"maps that compare images are set, and the gallery keeps {num_kept}: expected two or "
            "more"
        )
    has_references = num_kept > 1
    target = choose_target(vit, None, images.preprocessing, has_references=has_references)
    return ChosenMaps(names, config.torch_dtype, target, has_references=has_references)


def map_gallery(
    vit: ViTAdapter, images: ImageSet, config: AuditConfig, maps: ChosenMaps
) -> dict[str, dict[str, ImageMap]]:
    """Maps of the images of a gallery that are not of the row, by the images' digests."""
    if not maps.methods:
        return {}
    run = ModelRun(vit, images, replace(config, batch_size=1))
    found: dict[str, dict[str, ImageMap]] = {}
    with run.placed():
        references = make_references(vit, (one.pixels for one in run.iter_batches(None)))
        for one in run.iter_batches(None):
            with run.plain_errors(one):
                given = maps.target.make_input(
                    one.pixels, references, maps.methods, seed=config.seed
                )
                found[one.ids[0]] = maps.compute(given)
    return found
