"""What follows from the tables and sums of a run: the second pass, the summary, the verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from vitscope.files.json_files import write_json
from vitscope.files.storage import MARKER
from vitscope.images.level_range import NARROW, note_narrow
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.patch_norms import HighNormTokens
from vitscope.metrics.sums import AuditSums
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
    summarize_images,
)
from vitscope.results.token_summary import (
    summarize_anatomy,
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
    features = sums.find(FeatureSums)
    for layer, table in tables.items():
        add_centred_numbers(folder, table, layer, features[layer])
    write_sums(folder, manifest, sums)
    write_failures(folder, failures)
    write_json(folder / PROVENANCE, provenance)
    last = manifest.last_layer
    layers = {k: summarize_images(table) | sums.summarize(k) for k, table in tables.items()}
    norms = layers[last].pop("high_norm_tokens")
    for layer, summary in layers.items():
        if anatomy := summary.get("anatomy"):
            # The block's input is the output of the one before it.
            anatomy |= summarize_anatomy(
                tables[layer], anatomy["tokens"], images_fraction=norms[layer].images_fraction
            )
        layers[layer] = _to_plain(summary) | _judge(features[layer])
    data: dict[str, Any] = {
        "num_images": features[last].num_images,
        "num_failed": len(failures),
        "num_repeated": sums.num_repeated,
    }
    if notes := [*list_source_notes(provenance), *_note_ranges(tables[last])]:
        data["notes"] = notes
    write_json(folder / MARKER, _summarize(manifest, data, tables, layers, norms))


def _summarize(
    manifest: Manifest,
    data: Mapping[str, Any],
    tables: Mapping[int, Path],
    layers: Mapping[int, dict[str, Any]],
    norms: Sequence[HighNormTokens],
) -> dict[str, Any]:
    headline, table = layers[manifest.last_layer], tables[manifest.last_layer]
    summary = {
        "schema_version": SCHEMA_VERSION,
        "kind": "audit",
        "model": manifest.model,
        "settings": manifest.settings,
        "preprocessing": manifest.preprocessing | {"changed": list(manifest.changed)},
        "data": data,
        "ledger": summarize_errors(tables.values()) | {"tolerance": manifest.tolerance},
        "layer": manifest.last_layer,
        **headline,
        "layer_similarity": summarize_layer_similarity(table),
        "high_norm_tokens": [{"layer": n, **asdict(row)} for n, row in enumerate(norms)],
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


def _to_plain(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _to_plain(value) for key, value in tree.items()}
    return asdict(tree) if is_dataclass(tree) and not isinstance(tree, type) else tree


def _note_ranges(table: Path) -> list[str]:
    ranges = read_column(table, "level_range")
    return note_narrow(int((ranges < NARROW).sum()), len(ranges))


def _find_constant(sums: FeatureSums) -> Constant | None:
    output, patches = sums.plan.comparisons["residual"]["patches"]
    if sums.is_constant(output):
        return "output"
    return "patches" if sums.is_constant(patches) else None
