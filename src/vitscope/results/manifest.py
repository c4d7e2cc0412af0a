"""What was audited and how, and the files with the sums."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitscope.config import ClsTerm
from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.reading import plain_damage
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.files.typed_json import read_typed
from vitscope.metrics.feature_plan import FeaturePlan, make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.other_metrics import OtherMetrics
from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.sums import AuditSums, Sums
from vitscope.metrics.token_sums import TokenSums
from vitscope.results.mergeable import ModelIdentity
from vitscope.results.schema import ModelSummary, PreprocessingSummary

_FILE, _SUMS = "sums.safetensors", "sums"


@dataclass(frozen=True, kw_only=True)
class Manifest(ModelIdentity):
    """What was audited and how. Results merge if their manifests agree."""

    model: ModelSummary
    layers: tuple[int, ...]  # sorted; the headline is of the last
    groups: tuple[str, ...]
    has_skip: bool
    tokens: tuple[str, ...]  # tokens whose states are summed; empty for a pooling query
    renormalize: bool  # whether restricted outputs were divided by the kept mass
    cls_term: ClsTerm  # as requested; different choices may give the same `groups`
    dtype: str  # precision of the features
    preprocessing: PreprocessingSummary
    has_masks: bool
    tolerance: float  # largest accepted balance error
    metrics: Mapping[str, str] = field(default_factory=dict)  # name to package and version

    @property
    def last_layer(self) -> int:
        """The layer of the headline."""
        return self.layers[-1]

    def describe_same(self) -> dict[str, Any]:
        """What results must agree in to merge, but for how the model computes."""
        # One model may have several ids, and with them other names of recipe and size, and notes.
        content = asdict(self)
        model = content.pop("model")
        del content["behaviour_hash"], content["unknown"]
        named = {"id", "notes", "recipe", "size"}
        return {f"model's {k}": v for k, v in model.items() if k not in named} | content

    def make_plan(self, layer: int) -> FeaturePlan:
        """The feature plan of a layer."""
        return make_plan(
            self.groups,
            has_skip=self.has_skip,
            has_embedding=layer == self.last_layer,
            renormalize=self.renormalize,
        )

    def make_sums(self, folder: Path | None = None) -> AuditSums:
        """Empty sums for every layer, stored in a folder or in temporary ones."""
        return AuditSums({layer: tuple(self._list_sums(layer, folder)) for layer in self.layers})

    def _list_sums(self, layer: int, folder: Path | None) -> Iterator[Sums]:
        own = None if folder is None else folder / _SUMS / f"{layer:03d}"
        yield FeatureSums(self.make_plan(layer), getattr(torch, self.dtype), own)
        if self.tokens:
            yield TokenSums(self.tokens)
        if layer == self.last_layer:
            yield PatchNormCounts()
        if self.metrics:
            yield OtherMetrics(self.metrics)


def write_sums(folder: Path, manifest: Manifest, sums: AuditSums) -> None:
    """Write all sums and the manifest."""
    write_tensors(folder / _FILE, sums.save(), {"manifest": json.dumps(asdict(manifest))})


def read_sums(folder: Path, manifest: Manifest) -> AuditSums:
    """Read all sums."""
    tensors, _ = read_tensors(folder / _FILE)
    sums = manifest.make_sums()
    with plain_damage(folder):
        sums.load(tensors, folder / _SUMS)
    return sums


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of a result."""
    path = folder / _FILE
    _, metadata = read_tensors(path, [])
    with plain_damage(path):
        content = json.loads(metadata["manifest"])
    manifest = read_typed(Manifest, content, printable_path(path))
    if not isinstance(getattr(torch, manifest.dtype, None), torch.dtype) or not manifest.layers:
        raise ResultError(f"{printable_path(path)} is damaged: its layers or dtype are unknown")
    return manifest
