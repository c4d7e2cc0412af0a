"""Parts of a run, with tables, features, sums and failures of some images, become a result."""

from collections.abc import Sequence
from contextlib import closing
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from vitscope.files.disk_errors import plain_disk_errors
from vitscope.files.storage import link_or_copy
from vitscope.images.covariates import NARROW, note_narrow
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.sums import AuditSums
from vitscope.results.manifest import Manifest, read_sums, write_sums
from vitscope.results.records import (
    GROUP_ROWS,
    TableWriter,
    iter_row_groups,
    shard_paths,
    table_path,
)
from vitscope.results.saved_result import (
    IMAGES,
    list_source_notes,
    read_failures,
    read_table,
    write_result,
)
from vitscope.results.schema import DataSummary, Provenance
from vitscope.results.summary import add_centred_numbers, read_column, summarize, summarize_traces


def finish_result(
    folder: Path,
    manifest: Manifest,
    sums: AuditSums,
    *,
    failures: Sequence[tuple[str, str]],
    provenance: Provenance,
) -> None:
    """Complete a result from its tables, features and sums; `summary.json` comes last."""
    tables = {layer: table_path(folder, layer, manifest.last_layer) for layer in manifest.layers}
    features = sums.find(FeatureSums)
    for layer, table in tables.items():
        add_centred_numbers(folder, table, layer, features[layer])
    write_sums(folder, manifest, sums)
    last = tables[manifest.last_layer]
    narrow = read_column(last, "level_range") < NARROW
    names = read_table(last, "path").filter(narrow)["path"].to_pylist() if narrow.any() else []
    data = DataSummary(
        num_images=features[manifest.last_layer].num_images,
        num_failed=len(failures),
        num_repeated=sums.num_repeated,
        notes=(*list_source_notes(provenance), *note_narrow(names, len(narrow))),
    )
    summary = summarize(manifest, sums, tables, data, summarize_traces(folder))
    write_result(folder, summary, failures=failures, provenance=provenance)


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
    if not (folder / IMAGES).exists():  # a part without readable images
        return pa.chunked_array([], pa.string())
    return read_table(folder / IMAGES, "image_id")["image_id"]


def _merge_layer(folder: Path, layer: int, last_layer: int, parts: Sequence[Path]) -> None:
    shards = [shard_paths(part, layer) for part in parts]
    keep = all(shards)
    tables = [table_path(part, layer, last_layer) for part in parts]
    names = pq.read_schema(tables[0]).names if tables else []
    kept = [name for name in names if keep or not name.startswith("centred_")]
    target = table_path(folder, layer, last_layer)
    with closing(TableWriter(target, GROUP_ROWS)) as writer:
        for group in chain.from_iterable(map(iter_row_groups, tables)):
            writer.write(group.select(kept))
    if keep:
        home = folder / "features" / f"{layer:03d}"
        with plain_disk_errors(home):
            for index, shard in enumerate(chain.from_iterable(shards)):
                link_or_copy(shard, home / f"{index:06d}.safetensors")
