"""What follows from the tables and sums of a run: the second pass and the summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscope.images.level_range import NARROW, note_narrow
from vitscope.metrics.audit_sums import AuditSums
from vitscope.results.association_summary import summarize_covariates, summarize_interdependence
from vitscope.results.manifest import Manifest, write_sums
from vitscope.results.records import table_path
from vitscope.results.saved_result import list_source_notes, write_result
from vitscope.results.schema import AuditSummary, DataSummary
from vitscope.results.summary import (
    add_centred_numbers,
    read_column,
    summarize_errors,
    summarize_layer,
)
from vitscope.results.token_summary import (
    summarize_anatomy,
    summarize_high_norm_tokens,
    summarize_layer_similarity,
)


def finish_result(
    folder: Path,
    manifest: Manifest,
    sums: AuditSums,
    *,
    failures: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> None:
    """Write what follows from tables, features and sums; `summary.json` comes last."""
    tables = {layer: table_path(folder, layer, manifest.last_layer) for layer in manifest.layers}
    for layer, table in tables.items():
        add_centred_numbers(folder, table, layer, sums.features[layer])
    write_sums(folder, manifest, sums)
    last = tables[manifest.last_layer]
    data = DataSummary(
        num_images=sums.features[manifest.last_layer].num_images,
        num_failed=len(failures),
        num_repeated=sums.num_repeated,
        notes=(*list_source_notes(provenance), *_note_ranges(last)),
    )
    summary = _summarize(manifest, sums, tables, data)
    write_result(folder, summary, failures=failures, provenance=provenance)


def _summarize(
    manifest: Manifest, sums: AuditSums, tables: Mapping[int, Path], data: DataSummary
) -> AuditSummary:
    last = tables[manifest.last_layer]
    norms = summarize_high_norm_tokens(last, sums.patch_norms)
    # A block's input is the output of the one before it.
    anatomies = {
        layer: summarize_anatomy(tables[layer], tokens, norms[layer])
        for layer, tokens in sums.tokens.items()
    }
    layers = tuple(
        summarize_layer(table, layer, sums.features[layer], anatomies.get(layer))
        for layer, table in tables.items()
    )
    return AuditSummary(
        model=manifest.model,
        settings=manifest.settings,
        preprocessing=manifest.preprocessing,
        data=data,
        ledger=summarize_errors(tables.values(), manifest.tolerance),
        layers=layers,
        layer_similarity=summarize_layer_similarity(last),
        high_norm_tokens=norms,
        covariates=summarize_covariates(last),
        interdependence=summarize_interdependence(last, layers),
    )


def _note_ranges(table: Path) -> list[str]:
    ranges = read_column(table, "level_range")
    return note_narrow(int((ranges < NARROW).sum()), len(ranges))
