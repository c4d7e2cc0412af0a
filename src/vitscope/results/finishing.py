"""What follows from the tables and sums of a run: the second pass, the summary, the verdict."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscope.files.json_files import write_json
from vitscope.files.storage import MARKER
from vitscope.images.level_range import NARROW, note_narrow
from vitscope.metrics.audit_sums import AuditSums
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.results.association_summary import summarize_covariates, summarize_interdependence
from vitscope.results.manifest import Manifest, write_sums
from vitscope.results.records import table_path
from vitscope.results.saved_result import (
    PROVENANCE,
    SCHEMA_VERSION,
    list_source_notes,
    write_failures,
)
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
from vitscope.results.verdict import Constant, describe, judge


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
    write_failures(folder, failures)
    write_json(folder / PROVENANCE, provenance)
    norms = summarize_high_norm_tokens(tables[manifest.last_layer], sums.patch_norms)
    layers = {}
    for layer, table in tables.items():
        layers[layer] = summarize_layer(table, sums.features[layer])
        if layer in sums.tokens:
            # The block's input is the output of the one before it.
            layers[layer]["anatomy"] = summarize_anatomy(
                table, sums.tokens[layer], images_fraction=norms[layer]["images_fraction"]
            )
        layers[layer] |= _judge(sums.features[layer])
    summary = _summarize(manifest, sums, tables, layers, len(failures), norms)
    if notes := [*list_source_notes(provenance), *_note_ranges(tables[manifest.last_layer])]:
        summary["data"]["notes"] = notes
    write_json(folder / MARKER, summary)


def _summarize(
    manifest: Manifest,
    sums: AuditSums,
    tables: Mapping[int, Path],
    layers: Mapping[int, dict[str, Any]],
    num_failed: int,
    norms: list[dict[str, Any]],
) -> dict[str, Any]:
    headline, table = layers[manifest.last_layer], tables[manifest.last_layer]
    last = sums.features[manifest.last_layer]
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": "audit",
        "model": manifest.model,
        "settings": manifest.settings,
        "preprocessing": manifest.preprocessing | {"changed": list(manifest.changed)},
        "data": {
            "num_images": last.num_images,
            "num_failed": num_failed,
            "num_repeated": sums.num_repeated,
        },
        "ledger": summarize_errors(tables.values()) | {"tolerance": manifest.tolerance},
        "layer": manifest.last_layer,
        **headline,
        "layer_similarity": summarize_layer_similarity(table),
        "high_norm_tokens": norms,
        "covariates": summarize_covariates(table),
        "interdependence": summarize_interdependence(table, layers),
    }
    if manifest.listed_layers:
        summary["layers"] = layers
    return summary


def _judge(sums: FeatureSums) -> dict[str, Any]:
    cka = {term: sums.estimate_cka("residual", term) for term in sums.plan.comparisons["residual"]}
    shares = {term: sums.estimate_share("residual", term) for term in sums.plan.shares["residual"]}
    return describe(judge(cka, shares, sums.num_images, _find_constant(sums)))


def _note_ranges(table: Path) -> list[str]:
    ranges = read_column(table, "level_range")
    return note_narrow(int((ranges < NARROW).sum()), len(ranges))


def _find_constant(sums: FeatureSums) -> Constant | None:
    output, patches = sums.plan.comparisons["residual"]["patches"]
    if sums.is_constant(output):
        return "output"
    return "patches" if sums.is_constant(patches) else None
