"""The saved result of judging maps: tables of scores, and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.json_files import read_json, write_json
from vitscope.files.printable import printable_path
from vitscope.files.reading import open_table, plain_damage
from vitscope.files.storage import link_or_copy
from vitscope.files.typed_json import read_typed
from vitscope.metrics.jackknife import Estimate
from vitscope.results.image_maps import ImageMaps, read_maps, write_maps
from vitscope.results.map_verdict import (
    REFERENCE_MAP,
    MapVerdict,
    average,
    average_skill,
    compare_maps,
    judge_maps,
)
from vitscope.results.result_html import show_judgement
from vitscope.results.saved_result import TabularResult
from vitscope.results.schema import JudgementSummary, read_summary
from vitscope.results.schema_maps import ByMap, JudgedImage, MapScores

SCORES, MAPS = "scores.parquet", "maps.parquet"
"""Tables: a row for each image, removal and map; and a row for each image and map."""

_MAPS_FILE, _ABOUT_FILE = "maps.npz", "maps.json"
"""Files of a part: maps of an image that is kept."""

CURVES = ("deletion_curve", "insertion_curve")
PLAUSIBILITY = ("pointing", "mass_in_mask", "average_precision", "mask_area")
SANITY = ("randomised_last", "randomised_all", "other_target", "sensitivity")
_IDENTITY = ("path", "image_id", "removal", "map", "ceiling")


@dataclass(frozen=True)
class JudgeResult(TabularResult):
    """Judged maps on disk: read access to their files.

    Attributes:
        folder: Folder of the result.
    """

    @cached_property
    def summary(self) -> JudgementSummary:
        """Every number over the images.

        Raises:
            ResultError: If it is not a judgement of this schema, or damaged.
        """
        return read_summary(self.folder, JudgementSummary)

    def __str__(self) -> str:
        return f"{self.summary.model.id}: {self.summary.verdict.text}"

    def _repr_html_(self) -> str:
        return show_judgement(self.summary)

    @property
    def _table(self) -> pa.Table:
        return self.scores

    @property
    def scores(self) -> pa.Table:
        """One row per image, removal and map, with every score and both curves.

        Raises:
            ResultError: If the table cannot be read.
        """
        return _read_table(self.folder, SCORES)

    def read_maps(self, index: int) -> ImageMaps:
        """One of the kept images, with its maps.

        Args:
            index: Its index in `summary.images`.

        Returns:
            The image and its maps.

        Raises:
            ResultError: If its file is missing or damaged.
        """
        return read_maps(self.folder / _name_maps(index), self.summary.images[index].maps)


def _name_maps(index: int) -> str:
    return f"maps/{index:04d}.npz"


@dataclass(frozen=True)
class _About:
    maps: ByMap


def write_part_maps(part: Path, maps: ImageMaps) -> None:
    """Write the maps of an image that is kept."""
    write_maps(part / _MAPS_FILE, maps)
    about = {name: one.about for name, one in maps.maps.items()}
    write_json(part / _ABOUT_FILE, asdict(_About(about)))


def keep_images(folder: Path, parts: Sequence[Path]) -> tuple[JudgedImage, ...]:
    """Keep the images of parts that have maps, with each map's skill."""
    kept: list[JudgedImage] = []
    for part in parts:
        if not (part / _MAPS_FILE).exists():
            continue
        about = part / _ABOUT_FILE
        name = _name_maps(len(kept))
        with plain_disk_errors(folder):
            (folder / name).parent.mkdir(exist_ok=True)
            link_or_copy(part / _MAPS_FILE, folder / name)
        scores = _read_table(part, SCORES)
        first = next(iter(_split(scores, "removal").values()))
        skills = zip(first["map"].to_pylist(), _take(first, "skill").tolist(), strict=True)
        kept.append(
            JudgedImage(
                path=first["path"][0].as_py(),
                image_id=first["image_id"][0].as_py(),
                file=name,
                maps=read_typed(_About, read_json(about), printable_path(about)).maps,
                skill=dict(skills),
            )
        )
    return tuple(kept)


def write_tables(folder: Path, scores: pa.Table, maps: pa.Table) -> None:
    """Write the tables."""
    with plain_disk_errors(folder):
        pq.write_table(scores, folder / SCORES)
        pq.write_table(maps, folder / MAPS)


def concat_tables(folder: Path, parts: Sequence[Path]) -> None:
    """Write the tables of all parts as one."""
    write_tables(
        folder,
        pa.concat_tables([_read_table(part, SCORES) for part in parts]),
        pa.concat_tables([_read_table(part, MAPS) for part in parts]),
    )


def _read_table(folder: Path, name: str) -> pa.Table:
    with open_table(folder / name) as file:
        return file.read()


@dataclass(frozen=True, kw_only=True)
class JudgedScores:
    """What the tables say over all images."""

    num_images: int
    removals: Mapping[str, Mapping[str, MapScores]]
    ceiling: Mapping[str, Estimate]
    seconds: Mapping[str, float]
    plausibility: Mapping[str, Mapping[str, Estimate]]
    sanity: Mapping[str, Mapping[str, Estimate]]
    verdict: MapVerdict


def summarize_tables(folder: Path, titles: Mapping[str, str]) -> JudgedScores:
    """Summarise the tables of a result; the first removal decides."""
    with plain_damage(folder):
        return _summarize(_read_table(folder, SCORES), _read_table(folder, MAPS), titles)


def _summarize(scores: pa.Table, maps: pa.Table, titles: Mapping[str, str]) -> JudgedScores:
    removals: dict[str, dict[str, MapScores]] = {}
    ceiling: dict[str, Estimate] = {}
    verdict: MapVerdict | None = None
    for removal, rows in _split(scores, "removal").items():
        of_maps = _split(rows, "map")
        ids = next(iter(of_maps.values()))["image_id"].to_pylist()
        gaps = {name: _take(table, "gap") for name, table in of_maps.items()}
        removals[removal] = _summarize_removal(of_maps, gaps, ids)
        found = average(_take(next(iter(of_maps.values())), "ceiling"), ids)
        if found.value == found.value:
            ceiling[removal] = found
        if verdict is None:
            skills = {name: one.scores["skill"] for name, one in removals[removal].items()}
            verdict = judge_maps(gaps, skills, titles, ids, removal)
    assert verdict is not None
    of_maps = _split(maps, "map")
    return JudgedScores(
        num_images=len(set(maps["image_id"].to_pylist())),
        removals=removals,
        ceiling=ceiling,
        seconds={name: float(_take(table, "seconds").mean()) for name, table in of_maps.items()},
        plausibility=_average_columns(of_maps, PLAUSIBILITY),
        sanity=_average_columns(of_maps, SANITY),
        verdict=verdict,
    )


def _summarize_removal(
    tables: Mapping[str, pa.Table], gaps: Mapping[str, np.ndarray], ids: Sequence[str]
) -> dict[str, MapScores]:
    comparisons = compare_maps(gaps, REFERENCE_MAP, ids) if REFERENCE_MAP in gaps else {}
    deletion, insertion = CURVES
    return {
        name: MapScores(
            scores={
                column: average(_take(table, column), ids)
                for column in table.column_names
                if column not in {*_IDENTITY, *CURVES}
            }
            | {"skill": average_skill(gaps[name], gaps["random"], gaps["oracle"], ids)},
            deletion=tuple(np.mean(table[deletion].to_pylist(), axis=0).tolist()),
            insertion=tuple(np.mean(table[insertion].to_pylist(), axis=0).tolist()),
            against_attention=comparisons.get(name),
        )
        for name, table in tables.items()
    }


def _average_columns(
    tables: Mapping[str, pa.Table], columns: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    found: dict[str, dict[str, Estimate]] = {}
    for name, table in tables.items():
        ids = table["image_id"].to_pylist()
        for column in columns:
            if column in table.column_names:
                found.setdefault(name, {})[column] = average(_take(table, column), ids)
    return found


def _split(table: pa.Table, column: str) -> dict[str, pa.Table]:
    names = table[column].to_pylist()
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    return {name: table.take(rows) for name, rows in places.items()}


def _take(table: pa.Table, column: str) -> Any:
    return np.array(table[column].to_pylist(), dtype=float)
