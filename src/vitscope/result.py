"""The saved result of an audit: a folder that everything later is drawn from, without a model."""

import csv
import json
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vitscope.errors import ResultError, UsageError
from vitscope.metrics.feature_plan import FeaturePlan, make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.records import iter_row_groups, shard_paths, table_path
from vitscope.storage import (
    MARKER,
    is_result,
    never,
    read_json,
    scratch_folder,
    staged_folder,
    write_json,
)
from vitscope.summary import add_centred_cosines, summarize_errors, summarize_layer
from vitscope.tensor_files import read_tensors, write_tensors
from vitscope.verdict import judge

SCHEMA_VERSION = 1
_SUMS, _FAILURES, _PROVENANCE = "sums.safetensors", "failures.csv", "provenance.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a result is of: two results merge when their manifests are equal.

    Attributes:
        model: The `model` part of the summary.
        weights_hash: Digest of the weights.
        layers: Layers that were audited, sorted; the headline comes from the last of them.
        listed_layers: Whether the summary lists quantities per layer.
        groups: Token groups of the model.
        has_skip: Whether the row has a skip connection.
        renormalize: Whether restricted outputs were divided by the kept mass.
        dtype: Precision of the features.
        preprocessing: How pictures were prepared.
        tolerance: Largest balance error that was accepted.
    """

    model: dict[str, Any]
    weights_hash: str
    layers: tuple[int, ...]
    listed_layers: bool
    groups: tuple[str, ...]
    has_skip: bool
    renormalize: bool
    dtype: str
    preprocessing: dict[str, Any]
    tolerance: float

    @property
    def last_layer(self) -> int:
        """The layer that the headline comes from."""
        return self.layers[-1]

    def make_plan(self, layer: int) -> FeaturePlan:
        """The feature plan of a layer.

        Args:
            layer: One of `layers`.

        Returns:
            What is kept and compared there.
        """
        return make_plan(
            self.groups,
            has_skip=self.has_skip,
            has_embedding=layer == self.last_layer,
            renormalize=self.renormalize,
        )

    def make_sums(self, folder: Path) -> dict[int, FeatureSums]:
        """Empty sums for every layer.

        Args:
            folder: Folder of the result, which their rows are written to.

        Returns:
            Sums by layer.
        """
        dtype = getattr(torch, self.dtype)
        return {
            layer: FeatureSums(self.make_plan(layer), dtype, _rows_folder(folder, layer))
            for layer in self.layers
        }


@dataclass(frozen=True)
class AuditResult:
    """A result on disk; a thin face over its files.

    Attributes:
        folder: Where it lies.
    """

    folder: Path

    @classmethod
    def own(cls, folder: Path) -> "AuditResult":
        """Open a result whose folder lasts no longer than the object.

        Args:
            folder: A complete result in a temporary folder.

        Returns:
            The result; `save` it to keep it.
        """
        result = cls(folder)
        weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
        return result

    @classmethod
    def load(cls, folder: str | Path) -> "AuditResult":
        """Open a saved result.

        Args:
            folder: A folder that `audit` or `save` wrote.

        Returns:
            The result.

        Raises:
            ResultError: If it is not a result of this schema.
        """
        result = cls(Path(folder))
        summary = result.summary
        found = summary.get("schema_version") if isinstance(summary, dict) else None
        if found != SCHEMA_VERSION:
            raise ResultError(
                f"{folder} was written with schema {found}, this version reads {SCHEMA_VERSION}"
            )
        return result

    @property
    def summary(self) -> dict[str, Any]:
        """Every number over the images, as in `summary.json`."""
        summary: dict[str, Any] = read_json(self.folder / MARKER)
        return summary

    @property
    def provenance(self) -> dict[str, Any]:
        """Configuration, versions, weights hash."""
        provenance: dict[str, Any] = read_json(self.folder / _PROVENANCE)
        return provenance

    @property
    def manifest(self) -> Manifest:
        """What the result is of.

        Raises:
            ResultError: If the sums cannot be read.
        """
        return _read_manifest(self.folder)

    @property
    def images(self) -> pa.Table:
        """One row an image, of the last layer."""
        return pq.read_table(self.folder / "images.parquet")

    @property
    def failures(self) -> list[tuple[str, str]]:
        """Pictures that could not be read, with the reason."""
        with (self.folder / _FAILURES).open(encoding="utf-8", newline="") as file:
            return [(row["path"], row["reason"]) for row in csv.DictReader(file)]

    def read_sums(self) -> dict[int, FeatureSums]:
        """The sums that the estimates came from.

        Returns:
            Sums by layer.

        Raises:
            ResultError: If they cannot be read.
        """
        manifest = self.manifest
        tensors, _ = read_tensors(self.folder / _SUMS)
        dtype = getattr(torch, manifest.dtype)
        sums = {}
        for layer in manifest.layers:
            prefix = f"{layer:03d}/"
            part = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            plan, rows = manifest.make_plan(layer), _rows_folder(self.folder, layer)
            sums[layer] = FeatureSums.from_tensors(plan, dtype, part, rows, owner=self)
        return sums

    def save(self, folder: str | Path, *, overwrite: bool = False) -> "AuditResult":
        """Copy the result to another place.

        Args:
            folder: Where to.
            overwrite: Whether an earlier result there is replaced.

        Returns:
            The result at its new place.

        Raises:
            UsageError: If something else is there.
            VitscopeError: If the disk does not take it.
        """
        target = Path(folder)
        if target.resolve().is_relative_to(self.folder.resolve()):
            raise UsageError(f"{folder} is inside the result itself: choose another folder")
        with staged_folder(target, replaces=is_result if overwrite else never) as staging:
            shutil.copytree(self.folder, staging, dirs_exist_ok=True)
        return type(self)(target)

    def merge(self, *others: "AuditResult") -> "AuditResult":
        """The result of the union of disjoint image sets.

        Args:
            *others: Results of the same model, weights and settings.

        Returns:
            A new result in a temporary folder; `save` it to keep it.

        Raises:
            ResultError: If they are of different things, or share a picture.
            VitscopeError: If the disk does not take the result.
        """
        results = (self, *others)
        manifest = self.manifest
        for other in others:
            _check_same(manifest, other.manifest, other.folder)
        _check_disjoint([result.folder for result in results])
        with scratch_folder() as folder:
            sums = manifest.make_sums(folder)
            for result in results:
                for layer, part in result.read_sums().items():
                    sums[layer].merge(part)
            _merge_records(folder, manifest, [result.folder for result in results])
            finish_result(
                folder,
                manifest,
                sums,
                failures=list(chain.from_iterable(result.failures for result in results)),
                provenance={"merged_from": [result.provenance for result in results]},
            )
        return self.own(folder)


def finish_result(
    folder: Path,
    manifest: Manifest,
    sums: Mapping[int, FeatureSums],
    *,
    failures: Sequence[tuple[str, str]],
    provenance: Mapping[str, Any],
) -> None:
    """Write what follows from tables, features and sums; `summary.json` comes last.

    Args:
        folder: Folder that holds the tables and feature shards.
        manifest: What the result is of.
        sums: Sums by layer.
        failures: Pictures that could not be read, with the reason.
        provenance: Configuration and versions.
    """
    tables = {layer: table_path(folder, layer, manifest.last_layer) for layer in manifest.layers}
    for layer, table in tables.items():
        add_centred_cosines(folder, table, layer, sums[layer])
    _write_sums(folder, manifest, sums)
    with (folder / _FAILURES).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "reason"), *failures])
    write_json(folder / _PROVENANCE, provenance)
    layers = {layer: summarize_layer(table, sums[layer]) for layer, table in tables.items()}
    headline = layers[manifest.last_layer]
    last = sums[manifest.last_layer]
    shares = {
        term: share["value"] for term, share in headline["variance_share"]["residual"].items()
    }
    verdict = judge(last.estimate_cka("residual", "patches"), last.num_images, shares)
    summary = {
        "schema_version": SCHEMA_VERSION,
        "model": manifest.model,
        "data": {"num_images": last.num_images, "num_failed": len(failures)},
        "ledger": summarize_errors(tables.values()) | {"tolerance": manifest.tolerance},
        "verdict": verdict.status,
        "door": verdict.door,
        "verdict_text": verdict.text,
        "layer": manifest.last_layer,
        **headline,
    }
    if manifest.listed_layers:
        summary["layers"] = layers
    write_json(folder / MARKER, summary)


def _write_sums(folder: Path, manifest: Manifest, sums: Mapping[int, FeatureSums]) -> None:
    tensors = {
        f"{layer:03d}/{name}": tensor
        for layer, part in sums.items()
        for name, tensor in part.to_tensors().items()
    }
    write_tensors(folder / _SUMS, tensors, {"manifest": json.dumps(asdict(manifest))})


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _SUMS
    _, metadata = read_tensors(path, [])
    try:
        content = json.loads(metadata["manifest"])
        return Manifest(**content | {k: tuple(content[k]) for k in ("layers", "groups")})
    except (KeyError, TypeError, ValueError) as error:
        raise ResultError(f"{path} cannot be read: its description is damaged ({error})") from None


def _rows_folder(folder: Path, layer: int) -> Path:
    return folder / "sums" / f"{layer:03d}"


def _check_same(ours: Manifest, theirs: Manifest, folder: Path) -> None:
    a, b = _describe_same(ours), _describe_same(theirs)
    for name, value in a.items():
        if b.get(name) != value:
            raise ResultError(
                f"{folder} cannot be merged: its {name} differs ({b.get(name)!r} against "
                f"{value!r}); merge results of the same model, weights and settings"
            )


def _describe_same(manifest: Manifest) -> dict[str, Any]:
    # A model may be reached by several ids, and notes tell how it was.
    content = asdict(manifest)
    model = content.pop("model")
    return {f"model's {k}": v for k, v in model.items() if k not in {"id", "notes"}} | content


def _check_disjoint(folders: Sequence[Path]) -> None:
    seen: set[str] = set()
    for folder in folders:
        ids = set(pq.read_table(folder / "images.parquet", columns=["image_id"])[0].to_pylist())
        if shared := seen & ids:
            raise ResultError(
                f"{folder} cannot be merged: {len(shared)} of its pictures are in the other "
                "result too; merge results of disjoint image sets"
            )
        seen |= ids


def _merge_records(folder: Path, manifest: Manifest, parts: Sequence[Path]) -> None:
    for layer in manifest.layers:
        shards = [shard_paths(part, layer) for part in parts]
        keep = all(shards)
        target = table_path(folder, layer, manifest.last_layer)
        target.parent.mkdir(parents=True, exist_ok=True)
        tables = [table_path(part, layer, manifest.last_layer) for part in parts]
        _concat_tables(target, tables, drop_centred=not keep)
        if keep:
            home = folder / "features" / f"{layer:03d}"
            home.mkdir(parents=True)
            for index, shard in enumerate(chain.from_iterable(shards)):
                shutil.copyfile(shard, home / f"{index:05d}.safetensors")


def _concat_tables(target: Path, tables: Sequence[Path], *, drop_centred: bool) -> None:
    names = [
        name
        for name in pq.read_schema(tables[0]).names
        if not (drop_centred and name.startswith("centred_cosine"))
    ]
    groups: Iterator[pa.Table] = chain.from_iterable(iter_row_groups(table) for table in tables)
    with ExitStack() as stack:
        writer: pq.ParquetWriter | None = None
        for group in groups:
            rows = group.select(names)
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(target, rows.schema))
            writer.write_table(rows, row_group_size=rows.num_rows)
