"""The second pass over a run's features, and its summary."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscope.images.covariates import NARROW, note_narrow
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.sums import AuditSums
from vitscope.results.manifest import Manifest, write_sums
from vitscope.results.records import table_path
from vitscope.results.saved_result import list_source_notes, read_table, write_result
from vitscope.results.schema import AuditSummary, DataSummary
from vitscope.results.schema_numbers import LayerSummary, TraceSummary
from vitscope.results.summary import (
    add_centred_numbers,
    judge_layer,
    read_column,
    summarize_anatomy,
    summarize_covariates,
    summarize_errors,
    summarize_images,
    summarize_interdependence,
    summarize_layer_similarity,
)
from vitscope.results.trace_summary import summarize_traces


def finish_result(
    folder: Path,
    manifest: Manifest,
    sums: AuditSums,
    *,
    failures: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> None:
    """Complete a result from its tables, features and sums; `summary.json` comes last."""
    tables = {layer: table_path(folder, layer, manifest.last_layer) for layer in manifest.layers}
    features = sums.find(FeatureSums)
    for layer, table in tables.items():
        add_centred_numbers(folder, table, layer, features[layer])
    write_sums(folder, manifest, sums)
    last = tables[manifest.last_layer]
    data = DataSummary(
        num_images=features[manifest.last_layer].num_images,
        num_failed=len(failures),
        num_repeated=sums.num_repeated,
        notes=(*list_source_notes(provenance), *_note_ranges(last)),
    )
    trace = summarize_traces(folder)
    summary = _summarize(manifest, sums, tables, data, trace)
    write_result(folder, summary, failures=failures, provenance=provenance)


def _summarize(
    manifest: Manifest,
    sums: AuditSums,
    tables: Mapping[int, Path],
    data: DataSummary,
    trace: TraceSummary | None,
) -> AuditSummary:
    last = tables[manifest.last_layer]
    found = {layer: sums.summarize(layer) for layer in tables}
    norms = tuple(found[manifest.last_layer].pop("high_norm_tokens"))
    features = sums.find(FeatureSums)
    layers = []
    for layer, table in tables.items():
        # A block's input is the output of the one before it.
        tokens = found[layer].pop("tokens", None)
        anatomy = None if tokens is None else summarize_anatomy(table, tokens, norms[layer])
        verdict = judge_layer(features[layer], found[layer], manifest.model.own_output)
        numbers = summarize_images(table) | found[layer]
        layers.append(LayerSummary(index=layer, verdict=verdict, **numbers, anatomy=anatomy))
    return AuditSummary(
        model=manifest.model,
        settings=manifest.settings,
        preprocessing=manifest.preprocessing,
        data=data,
        ledger=summarize_errors(tables.values(), manifest.tolerance),
        layers=tuple(layers),
        layer_similarity=summarize_layer_similarity(last),
        high_norm_tokens=norms,
        trace=trace,
        covariates=summarize_covariates(last),
        interdependence=summarize_interdependence(last, layers),
    )


def _note_ranges(table: Path) -> list[str]:
    narrow = read_column(table, "level_range") < NARROW
    names: list[str] = []
    if narrow.any():
        names = read_table(table, "path").filter(narrow)["path"].to_pylist()
    return note_narrow(names, len(narrow))
