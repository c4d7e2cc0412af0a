"""The maps that a run makes of single images, and what they need."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch

from vitscope.config import AuditConfig
from vitscope.errors import UsageError
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.images.preprocessing import Preprocessing
from vitscope.maps.chosen_target import TargetLike, choose_target
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.references import References, make_references
from vitscope.maps.registry import check_maps, find_method
from vitscope.maps.token_maps import DEFAULT_MAPS
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.identity import hash_weights
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.image_maps import ImageMap, place_map
from vitscope.results.vocabulary import ROW_MAPS
from vitscope.runs.model_run import ModelRun


class ChosenMaps:
    """Maps by name, checked before the work.

    Those of the attention row come with a run's own pass; `methods` makes the others.
    """

    def __init__(
        self,
        vit: ViTAdapter,
        names: Sequence[str],
        dtype: torch.dtype,
        *,
        target: TargetLike | None = None,
        preprocessing: Preprocessing | None = None,
        has_references: bool = False,
    ) -> None:
        if isinstance(names, str) or not names:
            raise UsageError(f"maps was given as {names!r}: expected names, such as ['attention']")
        found = [find_method(name) for name in dict.fromkeys(names)]
        self.target = choose_target(
            vit, target, preprocessing or vit.preprocessing, has_references=has_references
        )
        check_maps(found, self.target, has_references=has_references)
        self._names = tuple(method.name for method in found)
        self.methods = tuple(method for method in found if method.name not in ROW_MAPS)
        self._vit = vit
        if self.methods and dtype in HALF_PRECISIONS:
            name = str(dtype).removeprefix("torch.")
            raise UsageError(
                f"{self.methods[0].name} compares numbers that {name} rounds to the same: use "
                "float32"
            )

    def check_used(self, **given: object) -> None:
        """Refuse a target or references that no map depends on."""
        targeted = any(method.targeted for method in self.methods)
        used = {
            "target": targeted,
            "references": targeted or any(method.compares for method in self.methods),
        }
        for name, value in given.items():
            if value is not None and not used[name]:
                raise UsageError(
                    f"{name} is set, but no map depends on it ({', '.join(self._names)}): add one "
                    "that does to maps, or leave it out"
                )

    def describe_target(self) -> dict[str, str]:
        """What the maps explain, for the provenance; nothing if none depends on it."""
        if not any(method.targeted for method in self.methods):
            return {}
        whole = self.target.vit.module
        with_head = {} if whole is self._vit.module else {"classifier_hash": hash_weights(whole)}
        return {"target": self.target.told, **with_head}

    def compute(
        self, pixels: Pixels, references: References | None, *, layer: int | None, seed: int
    ) -> dict[str, ImageMap]:
        """The maps of one image that are not of the row; a map that is not finite is left out."""
        given = MapInput(
            vit=self.target.vit,
            pixels=pixels,
            choice=self.target.choose,
            references=references,
            layer=layer,
            seed=seed,
        )
        made = {
            method.name: place_values(method, given, method.compute(given))
            for method in self.methods
        }
        return {name: one for name, one in made.items() if _is_finite(one)}

    def arrange(self, found: Mapping[str, ImageMap]) -> dict[str, ImageMap]:
        """Maps in the order in which they were named, each centred one after the raw one."""
        names = [name for one in self._names for name in (one, f"centred_{one}")]
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


def _is_finite(one: ImageMap) -> bool:
    return all(np.isfinite(part).all() for part in (one.values, one.error) if part is not None)


def choose_gallery_maps(vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> ChosenMaps:
    """The maps of a gallery, whose images are compared with each other."""
    if config.maps is not None and not config.gallery:
        raise UsageError("maps is set, but gallery is 0: no image is kept to be mapped")
    names = DEFAULT_MAPS if config.maps is None else config.maps
    num_kept = min(config.gallery, len(images))
    if num_kept < 2 and any(find_method(name).compares for name in names):
        raise UsageError(
            f"maps that compare images are set, and the gallery keeps {num_kept}: expected two or "
            "more"
        )
    return ChosenMaps(vit, names, config.torch_dtype, has_references=num_kept > 1)


def map_gallery(
    vit: ViTAdapter, images: ImageSet, config: AuditConfig, maps: ChosenMaps
) -> dict[str, dict[str, ImageMap]]:
    """Maps of the images of a gallery that are not of the row, by the images' digests."""
    if not maps.methods:
        return {}
    run = ModelRun(vit, images, config)
    found: dict[str, dict[str, ImageMap]] = {}
    with run.placed():
        references = make_references(vit, (one.pixels for one in _iter_images(run)))
        for one in _iter_images(run):
            with run.plain_errors(one):
                found[one.ids[0]] = maps.compute(
                    one.pixels, references, layer=None, seed=config.seed
                )
    return found


def _iter_images(run: ModelRun) -> Iterator[ImageBatch]:
    for batch in run.iter_batches(None):
        for index in range(len(batch.ids)):
            yield batch.select(slice(index, index + 1))
