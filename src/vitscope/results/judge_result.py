"""The saved result of judging maps: tables of scores, and their summary."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.reading import plain_damage
from vitscope.files.typed_json import read_typed
from vitscope.metrics.jackknife import Estimate
from vitscope.results.image_maps import ImageMaps, keep_maps, name_maps, read_maps
from vitscope.results.map_verdict import (
    REFERENCE_MAP,
    average,
    compare_maps,
    judge_maps,
    replicate_skill,
)
from vitscope.results.mergeable import (
    MergeableResult,
    ModelIdentity,
    check_disjoint,
    check_same,
)
from vitscope.results.saved_result import (
    PROVENANCE,
    SCORES,
    concat_tables,
    list_runs,
    read_table,
    saved_summary,
    write_result,
    write_table,
)
from vitscope.results.schema import DataSummary, JudgementSummary
from vitscope.results.schema_maps import JudgedImage, JudgedMap, MapScores

MAPS = "maps.parquet"
"""Table with a row for each image and map; that of scores has one for each removal too."""


CURVES = ("deletion_curve", "insertion_curve")
PLAUSIBILITY = ("pointing", "mass_in_mask", "average_precision", "mask_area")
SANITY = ("randomised_last", "randomised_all", "other_target", "sensitivity")
_IDENTITY = ("path", "image_id", "removal", "map", "ceiling")


class JudgeResult(MergeableResult):
    """Judged maps on disk: read access to their files."""

    _table_file = SCORES
    summary = saved_summary(JudgementSummary)
    """Every number over the images; `ResultError` if it is damaged or of another kind."""

    @property
    def identity(self) -> ModelIdentity:
        """Which model it is of."""
        return read_typed(ModelIdentity, self._plan, printable_path(self.folder / PROVENANCE))

    @property
    def described_target(self) -> Mapping[str, Any]:
        """What the maps explain, with the digest of a classifier; None for a function."""
        names = ("target", "classifier_hash")
        return {name: self._plan[name] for name in names if name in self._plan}

    @property
    def _plan(self) -> Mapping[str, Any]:
        with plain_damage(self.folder / PROVENANCE):
            plan: Mapping[str, Any] = list_runs(self.provenance)[0].get("plan", {})
        return plan  # those of merged results differ in the images alone

    def __str__(self) -> str:
        return f"{self.summary.model.id}: {self.summary.verdict.text}"

    @property
    def scores(self) -> pa.Table:
        """One row per image, removal and map, with every score and both curves.

        Raises:
            ResultError: If the table cannot be read.
        """
        return self._table

    def read_gaps(self) -> tuple[list[str], dict[str, np.ndarray]]:
        """Identities of the images, and the gap of each map and baseline on them.

        Returns:
            Both with the first removal, which decides.

        Raises:
            ResultError: If the table cannot be read.
        """
        with plain_damage(self.folder):
            return _read_gaps(_split(next(iter(_split(self.scores, "removal").values())), "map"))

    def read_maps(self, index: int) -> ImageMaps:
        """One of the kept images, with its maps.

        Args:
            index: Its index in `summary.images`.

        Returns:
            The image and its maps.

        Raises:
            ResultError: If its file is missing or damaged.
        """
        return read_maps(self.folder / name_maps(index), self.summary.images[index].maps)

    @classmethod
    def _merge_into(cls, folder: Path, results: Sequence[Self]) -> None:
        first, folders = results[0], [result.folder for result in results]
        for other in results[1:]:
            check_same(other.folder, _describe_same(first), _describe_same(other))
            first.identity.check_same_model(other.folder, other.identity)
        with plain_damage(*folders):  # any of them may be the damaged one
            if first._plan["target"] is None:
                raise ResultError(
                    f"{folders[0]} cannot be merged: its target is a function, and whether two are "
                    "the same cannot be verified; judge all images at once"
                )
            check_disjoint(folders, list(map(read_ids, folders)))
            for name in (SCORES, MAPS):
                concat_tables(folder, folders, name)
            data = [result.summary.data for result in results]
            failures = [failure for result in results for failure in result.failures]
            summary = replace(
                first.summary,
                data=DataSummary(
                    num_images=len(read_ids(folder)),
                    num_failed=len(failures),
                    num_repeated=sum(one.num_repeated for one in data),
                    notes=tuple(dict.fromkeys(note for one in data for note in one.notes)),
                ),
                images=_merge_images(folder, results, limit=int(first._plan["gallery"])),
                **summarize_tables(folder, first.summary.maps),
            )
        provenance = {"merged_from": [result.provenance for result in results]}
        write_result(folder, summary, failures=failures, provenance=provenance)


def _describe_same(result: JudgeResult) -> dict[str, Any]:
    # All that numbers depend on, but for the images; the model's computation is compared apart.
    apart = {"images", "names", "shard", "references", "device", "behaviour_hash", "unknown"}
    plan = {name: value for name, value in result._plan.items() if name not in apart}
    return plan | {"reference": asdict(result.summary.reference)}


def _merge_images(
    folder: Path, results: Sequence[JudgeResult], limit: int
) -> tuple[JudgedImage, ...]:
    kept = [
        (image, result.folder / name_maps(index))
        for result in results
        for index, image in enumerate(result.summary.images)
    ]
    for image, file in kept[:limit]:
        read_maps(file, image.maps)  # which refuses damaged ones
    return tuple(
        replace(image, file=keep_maps(folder, index, file))
        for index, (image, file) in enumerate(kept[:limit])
    )


def write_tables(part: Path, scores: pa.Table, maps: pa.Table) -> None:
    """Write the tables of a part."""
    write_table(part / SCORES, scores)
    write_table(part / MAPS, maps)


def read_ids(folder: Path) -> pa.ChunkedArray:
    """Identities of the images in the tables."""
    of_maps = _split(read_table(folder / MAPS), "map")
    return next(iter(of_maps.values()))["image_id"]


def summarize_tables(folder: Path, maps: Mapping[str, JudgedMap]) -> dict[str, Any]:
    """The fields of the summary that follow from the tables; the first removal decides."""
    with plain_damage(folder):
        scores = {
            removal: _split(rows, "map")
            for removal, rows in _split(read_table(folder / SCORES), "removal").items()
        }
        of_maps = _split(read_table(folder / MAPS), "map")
        judged = [
            table["image_id"] for tables in (of_maps, *scores.values()) for table in tables.values()
        ]
        if not all(ids.equals(judged[0]) for ids in judged):
            raise ValueError("the tables are not of the same images")
        removals = {removal: _summarize_removal(tables) for removal, tables in scores.items()}
        ceilings = {
            removal: _average(next(iter(tables.values())), "ceiling")
            for removal, tables in scores.items()
        }
        decisive, tables = next(iter(scores.items()))
        ids, gaps = _read_gaps(tables)
        skills = {name: one.scores["skill"] for name, one in removals[decisive].items()}
        titles = {name: one.title for name, one in maps.items()}
        return {
            "maps": {
                name: replace(one, seconds=float(_take(of_maps[name], "seconds").mean()))
                for name, one in maps.items()
            },
            "removals": removals,
            "ceiling": {name: one for name, one in ceilings.items() if not math.isnan(one.value)},
            "plausibility": _average_columns(of_maps, PLAUSIBILITY),
            "sanity": _average_columns(of_maps, SANITY),
            "verdict": judge_maps(gaps, skills, titles, ids, decisive),
        }


def _summarize_removal(tables: Mapping[str, pa.Table]) -> dict[str, MapScores]:
    ids, gaps = _read_gaps(tables)
    comparisons = compare_maps(gaps, REFERENCE_MAP, ids) if REFERENCE_MAP in gaps else {}
    deletion, insertion = CURVES
    return {
        name: MapScores(
            scores={
                column: _average(table, column)
                for column in table.column_names
                if column not in {*_IDENTITY, *CURVES}
            }
            | {"skill": replicate_skill(gaps, name, ids).estimate()},
            deletion=tuple(np.mean(table[deletion].to_pylist(), axis=0).tolist()),
            insertion=tuple(np.mean(table[insertion].to_pylist(), axis=0).tolist()),
            against_attention=comparisons.get(name),
        )
        for name, table in tables.items()
    }


def _read_gaps(of_maps: Mapping[str, pa.Table]) -> tuple[list[str], dict[str, np.ndarray]]:
    ids = next(iter(of_maps.values()))["image_id"].to_pylist()
    return ids, {name: _take(table, "gap") for name, table in of_maps.items()}


def _average_columns(
    tables: Mapping[str, pa.Table], columns: Sequence[str]
) -> dict[str, dict[str, Estimate]]:
    return {
        name: {column: _average(table, column) for column in columns}
        for name, table in tables.items()
        if columns[0] in table.column_names
    }


def _average(table: pa.Table, column: str) -> Estimate:
    return average(_take(table, column), table["image_id"].to_pylist())


def _split(table: pa.Table, column: str) -> dict[str, pa.Table]:
    names = table[column].unique().to_pylist()
    if not names or None in names:
        raise ValueError(f"the column {column} is empty or has nulls")
    return {name: table.filter(pc.field(column) == name) for name in names}


def _take(table: pa.Table, column: str) -> Any:
    return np.array(table[column].to_pylist(), dtype=float)
