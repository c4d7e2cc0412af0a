"""Judging the maps of one image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float64
from PIL import Image

from vitscope.images.addresses import read_image
from vitscope.images.decoding import decode_for_model, prepare_image
from vitscope.images.image_set import ImageSet
from vitscope.images.masks import crop_mask, decode_mask
from vitscope.maps.judgement import SCORES, Judgement, judge_images
from vitscope.maps.method import MapInput, MapMethod, MapValues
from vitscope.maps.removal import Removal
from vitscope.maps.sanity import measure_sanity, measure_sensitivity
from vitscope.maps.targets import explain_other
from vitscope.metrics.faithfulness import compute_rank
from vitscope.metrics.plausibility import (
    compute_average_precision,
    compute_mass_in_mask,
    compute_pointing,
)
from vitscope.results.image_maps import ImageMaps, name_maps, write_kept, write_maps
from vitscope.results.judge_result import PLAUSIBILITY, write_tables
from vitscope.results.schema_maps import JudgedImage
from vitscope.runs.chosen_maps import place_values


@dataclass(frozen=True, eq=False, kw_only=True)
class ImageJudge:
    """Judges the same maps of one image after another."""

    images: ImageSet
    methods: Sequence[MapMethod]
    removals: Sequence[Removal]
    sanity: bool  # whether maps are also compared with those of random weights

    def write(self, part: Path, index: int, image_id: str, given: MapInput, *, keep: bool) -> None:
        """Write the scores of one image, and its maps if they are kept."""
        made: dict[str, MapValues] = {}
        numbers: dict[str, dict[str, float]] = {}
        for method in self.methods:
            start = perf_counter()
            made[method.name] = method.compute(given)
            numbers[method.name] = {"seconds": perf_counter() - start}
        judged = [judge_images(given, made, removal) for removal in self.removals]
        if self.images.masks:
            shares = self._read_mask(index, given.layout.grid)
            for name, one in made.items():
                values = given.take_patches(one.values)[0].double().cpu().numpy()
                numbers[name] |= _score_plausibility(values, shares)
        if self.sanity:
            for name, found in _check_sanity(given, self.methods).items():
                numbers[name] |= found
        known = {"path": self.images.name_image(index), "image_id": image_id}
        rows = [{**known, "map": name, **values} for name, values in numbers.items()]
        scores = [row | known for row in _list_scores(judged)]
        write_tables(part, pa.Table.from_pylist(scores), pa.Table.from_pylist(rows))
        if keep:
            maps = {
                method.name: place_values(method, given, made[method.name])
                for method in self.methods
            }
            image, _ = prepare_image(self._decode(index), self.images.preprocessing)
            file = name_maps(0)
            about = write_maps(part / file, ImageMaps(image=np.asarray(image), maps=maps))
            decided = [row for row in scores if row["removal"] == judged[0].removal]
            skill = {row["map"]: row["skill"] for row in decided}
            write_kept(part, JudgedImage(**known, file=file, maps=about, skill=skill))

    def _decode(self, index: int) -> Image.Image:
        data = read_image(self.images.addresses[index])
        return decode_for_model(data, self.images.preprocessing)

    def _read_mask(self, index: int, grid: tuple[int, int]) -> Float64[np.ndarray, " patch"] | None:
        # Share of each patch that lies on the object; None without a mask.
        path = self.images.masks[index]
        if path is None:
            return None
        mask = decode_mask(read_image(path))
        segments = crop_mask(mask, self._decode(index), self.images.preprocessing)
        (rows, columns), (height, width) = grid, segments.shape
        cells = (segments != 0).reshape(rows, height // rows, columns, width // columns)
        return np.asarray(cells.mean(axis=(1, 3)).ravel())


def _list_scores(judged: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    for one in judged:
        others = [other.deltas[0] for other in judged if other is not one]
        ranks = [compute_rank(one.deltas[0], deltas) for deltas in others]
        ceiling = float(np.mean(ranks)) if ranks else float("nan")
        for place, name in enumerate(one.maps):
            scores = zip(SCORES, one.scores[0, place].tolist(), strict=True)
            yield {
                "removal": one.removal,
                "map": name,
                "ceiling": ceiling,
                **dict(scores),
                "deletion_curve": one.deletion[0, place].tolist(),
                "insertion_curve": one.insertion[0, place].tolist(),
            }


def _score_plausibility(values: np.ndarray, shares: np.ndarray | None) -> dict[str, float]:
    if shares is None:
        return dict.fromkeys(PLAUSIBILITY, float("nan"))
    return {
        "pointing": compute_pointing(values, shares),
        "mass_in_mask": compute_mass_in_mask(values, shares),
        "average_precision": compute_average_precision(values, shares),
        "mask_area": float(shares.mean()),
    }


def _check_sanity(given: MapInput, methods: Sequence[MapMethod]) -> dict[str, dict[str, float]]:
    found = measure_sanity(given, methods, explain_other)
    moved = measure_sensitivity(given, methods)
    return {
        method.name: {
            "randomised_last": float(found.randomised[0, place, 0]),
            "randomised_all": float(found.randomised[0, place, -1]),
            "other_target": float(found.other_target[0, place]),
            "sensitivity": float(moved[0, place]),
        }
        for place, method in enumerate(methods)
    }
