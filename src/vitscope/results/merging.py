"""Merging parts: folders with tables, features, sums and failures of some images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.errors import ResultError
from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.reading import open_table
from vitscope.files.storage import link_or_copy
from vitscope.metrics.sums import AuditSums
from vitscope.results.manifest import Manifest, read_sums
from vitscope.results.records import (
    GROUP_ROWS,
    TableWriter,
    iter_row_groups,
    shard_paths,
    table_path,
)
from vitscope.results.saved_result import read_failures

_WHOLE = "1/1"
_NO_IDS = pa.chunked_array([], pa.string())


def merge_parts(
    folder: Path, manifest: Manifest, parts: Sequence[Path]
) -> tuple[AuditSums, list[tuple[str, str]]]:
    """Merge parts with tables and features; the same order gives the same bits."""
    sums = manifest.make_sums(folder)
    for part in parts:
        sums.merge(read_sums(part, manifest))
    # A part without readable images has no tables.
    filled = [p for p in parts if table_path(p, manifest.last_layer, manifest.last_layer).exists()]
    for layer in manifest.layers:
        _merge_layer(folder, layer, manifest.last_layer, filled)
    return sums, list(chain.from_iterable(map(read_failures, parts)))


def list_shards(provenance: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The shards that a result is made of."""
    if "merged_from" in provenance:
        return [one for part in provenance["merged_from"] for one in list_shards(part)]
    plan = provenance.get("plan", {})
    return [(str(plan.get("names")), str(plan.get("shard") or _WHOLE))]


def find_missing_shards(provenance: Mapping[str, Any]) -> list[str] | None:
    """Missing shards of the same images; None if that is not known."""
    shards = list_shards(provenance)
    there = {name for _, name in shards}
    if there == {_WHOLE}:
        return []
    if not _are_of_one_set(shards):
        return None
    count = int(shards[0][1].rpartition("/")[2])
    return [name for k in range(1, count + 1) if (name := f"{k}/{count}") not in there]


def _are_of_one_set(shards: Sequence[tuple[str, str]]) -> bool:
    sets = {(names, shard.partition("/")[2]) for names, shard in shards}
    return len(sets) == 1 and len(set(shards)) == len(shards)


def find_repeated(folders: Sequence[Path]) -> list[list[str]]:
    """Find images that are counted more than once."""
    ids = list(map(_read_ids, folders))
    every = pa.chunked_array([chunk for one in ids for chunk in one.chunks], pa.string())
    codes = every.combine_chunks().dictionary_encode().indices.to_numpy(zero_copy_only=False)
    _, first = np.unique(codes, return_index=True)
    later = np.ones(len(codes), bool)
    later[first] = False
    stops = np.cumsum([len(one) for one in ids])[:-1]
    return [
        one.filter(pa.array(again)).to_pylist()
        for one, again in zip(ids, np.split(later, stops), strict=True)
    ]


def read_ids(folder: Path) -> frozenset[str]:
    """Identities of the images of a result."""
    return frozenset(_read_ids(folder).to_pylist())


def _read_ids(folder: Path) -> pa.ChunkedArray:
    table = folder / "images.parquet"
    if not table.exists():  # a part without readable images
        return _NO_IDS
    with open_table(table) as file:
        return file.read(columns=["image_id"])["image_id"]


def check_disjoint(folders: Sequence[Path]) -> None:
    """Refuse to count an image twice."""
    for folder, repeated in zip(folders, find_repeated(folders), strict=True):
        if repeated:
            raise ResultError(
                f"{folder} cannot be merged: {len(repeated)} of its images are repeated or also "
                "in another result; merge results of disjoint image sets, and shards of one list "
                "that did not change between the jobs and, if it is in a store or a table, "
                "contains no copies"
            )


def _merge_layer(folder: Path, layer: int, last_layer: int, parts: Sequence[Path]) -> None:
    shards = [shard_paths(part, layer) for part in parts]
    keep = all(shards)
    target = table_path(folder, layer, last_layer)
    with plain_disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    _concat_tables(
        target, [table_path(part, layer, last_layer) for part in parts], drop_centred=not keep
    )
    if keep:
        home = folder / "features" / f"{layer:03d}"
        with plain_disk_errors(home):
            home.mkdir(parents=True)
            for index, shard in enumerate(chain.from_iterable(shards)):
                link_or_copy(shard, home / f"{index:06d}.safetensors")


def _concat_tables(target: Path, tables: Sequence[Path], *, drop_centred: bool) -> None:
    if not tables:
        return
    names = [
        name
        for name in pq.read_schema(tables[0]).names
        if not (drop_centred and name.startswith("centred_"))
    ]
    groups: Iterator[pa.Table] = chain.from_iterable(iter_row_groups(table) for table in tables)
    with closing(TableWriter(target, GROUP_ROWS)) as writer:
        for group in groups:
            writer.write(group.select(names))
