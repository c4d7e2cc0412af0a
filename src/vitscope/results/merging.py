"""Merging parts: folders with tables, features, sums and failures of some images."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.files.disk_errors import plain_disk_errors
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
from vitscope.results.saved_result import IMAGES, read_failures, read_table

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


def read_ids(folder: Path) -> pa.ChunkedArray:
    """Identities of the images of a part or a result."""
    table = folder / IMAGES
    # A part without readable images has no table.
    return read_table(table, "image_id")["image_id"] if table.exists() else _NO_IDS


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
