"""What a result is of, and the files that its sums lie in."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitscope.config import ClsTerm
from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.files.reading import plain_damage
from vitscope.files.tensor_files import read_tensors, write_tensors
from vitscope.files.typed_json import read_typed
from vitscope.metrics.audit_sums import AuditSums
from vitscope.metrics.feature_plan import FeaturePlan, make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.patch_norms import PatchNormCounts
from vitscope.metrics.token_sums import DIRECTION, TokenSums
from vitscope.results.schema import ModelSummary, PreprocessingSummary, Settings

_SUMS, _TOKEN_SUMS = "sums.safetensors", "token_sums.safetensors"
_PATCH_NORMS = "patch_norms/"
_NUM_REPEATED = "num_repeated"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a result is of: two results merge when their manifests are equal.

    Attributes:
        model: The model.
        weights_hash: Digest of the weights.
        behaviour_hash: Digest of how the model computes with them; empty in results of versions
            that did not take it.
        unknown: What of that cannot be compared with another model's, in words.
        layers: Layers that were audited, sorted; the headline comes from the last of them.
        groups: Token groups of the model.
        has_skip: Whether the row has a skip connection.
        tokens: Names of the tokens whose states are summed; empty for a pooling query.
        renormalize: Whether restricted outputs were divided by the kept mass.
        cls_term: Where the attention of [CLS] to itself was to be counted, whose groups may be the
            same wherever that is.
        dtype: Precision of the features.
        preprocessing: How images were prepared.
        has_masks: Whether segments of masks were described.
        tolerance: Largest balance error that was accepted.
    """

    model: ModelSummary
    weights_hash: str
    layers: tuple[int, ...]
    groups: tuple[str, ...]
    has_skip: bool
    tokens: tuple[str, ...]
    renormalize: bool
    cls_term: ClsTerm
    dtype: str
    preprocessing: PreprocessingSummary
    has_masks: bool
    tolerance: float
    behaviour_hash: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def last_layer(self) -> int:
        """The layer that the headline comes from."""
        return self.layers[-1]

    @property
    def settings(self) -> Settings:
        """What was chosen that changes what the numbers mean."""
        return Settings(renormalize=self.renormalize, cls_term=self.cls_term)

    def compare_behaviour(self, behaviour_hash: str, unknown: Sequence[str]) -> str:
        """Whether another model of the same weights computes as this one does."""
        if found := [*self.unknown, *unknown]:
            return f"whether its model is the same cannot be verified, for {found[0]} is not known"
        if not (self.behaviour_hash and behaviour_hash):
            return "it is of an earlier version, which did not record how its model computes"
        if self.behaviour_hash != behaviour_hash:
            return (
                "its model has the same weights and computes otherwise (a hook, a parametrisation, "
                "a replaced part or a setting)"
            )
        return ""

    def make_plan(self, layer: int) -> FeaturePlan:
        """The feature plan of a layer."""
        return make_plan(
            self.groups,
            has_skip=self.has_skip,
            has_embedding=layer == self.last_layer,
            renormalize=self.renormalize,
        )

    def make_sums(self, folder: Path) -> AuditSums:
        """Empty sums for every layer."""
        dtype = getattr(torch, self.dtype)
        return AuditSums(
            features={
                layer: FeatureSums(self.make_plan(layer), dtype, sums_folder(folder, layer))
                for layer in self.layers
            },
            tokens={layer: TokenSums(self.tokens) for layer in self.layers if self.tokens},
            patch_norms=PatchNormCounts(),
        )


def check_same(ours: Manifest, theirs: Manifest, folder: Path) -> None:
    """Refuse to merge results of different things."""
    a, b = _describe_same(ours), _describe_same(theirs)
    for name, value in a.items():
        if b.get(name) != value:
            raise ResultError(
                f"{folder} cannot be merged: its {name} differs ({b.get(name)!r} against "
                f"{value!r}); merge results of the same model, weights and settings"
            )
    if reason := theirs.compare_behaviour(ours.behaviour_hash, ours.unknown):
        raise ResultError(f"{folder} cannot be merged: {reason}; audit all images in one run")


def sums_folder(folder: Path, layer: int) -> Path:
    """Where the rows and moments of a layer's features lie."""
    return folder / "sums" / f"{layer:03d}"


def write_sums(folder: Path, manifest: Manifest, sums: AuditSums) -> None:
    """Write all sums, and what they are of."""
    features = _with_layers({k: s.to_tensors() for k, s in sums.features.items()})
    features[_NUM_REPEATED] = torch.tensor(sums.num_repeated)
    write_tensors(folder / _SUMS, features, {"manifest": json.dumps(asdict(manifest))})
    tokens = _with_layers({k: s.to_tensors() for k, s in sums.tokens.items()})
    norms = {f"{_PATCH_NORMS}{k}": v for k, v in sums.patch_norms.to_tensors().items()}
    write_tensors(folder / _TOKEN_SUMS, tokens | norms)


def read_sums(folder: Path, manifest: Manifest, owner: object) -> AuditSums:
    """Read all sums."""
    features, _ = read_tensors(folder / _SUMS)
    tokens, _ = read_tensors(folder / _TOKEN_SUMS)
    with plain_damage(folder):
        if not all(map(_is_sound, (*features, *tokens), (*features.values(), *tokens.values()))):
            raise ResultError(f"{printable_path(folder)} is damaged: its sums are not finite")
        return AuditSums(
            features={
                layer: FeatureSums.from_tensors(
                    manifest.make_plan(layer),
                    getattr(torch, manifest.dtype),
                    _take(features, f"{layer:03d}/"),
                    sums_folder(folder, layer),
                    owner=owner,
                )
                for layer in manifest.layers
            },
            tokens={
                layer: TokenSums.from_tensors(manifest.tokens, _take(tokens, f"{layer:03d}/"))
                for layer in manifest.layers
                if manifest.tokens
            },
            patch_norms=PatchNormCounts.from_tensors(_take(tokens, _PATCH_NORMS)),
            # Earlier versions left none out.
            num_repeated=int(features.get(_NUM_REPEATED, torch.tensor(0)).sum()),
        )


def _is_sound(name: str, sums: Tensor) -> bool:
    # A vector of zeros has no direction: NaN in its sums says so.
    undefined = sums.isinf() if name.endswith(f"/{DIRECTION}") else ~sums.isfinite()
    return not bool(undefined.any())


def read_manifest(folder: Path) -> Manifest:
    """Read what a result is of."""
    path = folder / _SUMS
    _, metadata = read_tensors(path, [])
    with plain_damage(path):
        content = json.loads(metadata["manifest"])
    manifest = read_typed(Manifest, content, printable_path(path))
    if not isinstance(getattr(torch, manifest.dtype, None), torch.dtype) or not manifest.layers:
        raise ResultError(f"{printable_path(path)} is damaged: it is of no known layers or dtype")
    return manifest


def _with_layers(parts: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{layer:03d}/{k}": v for layer, part in parts.items() for k, v in part.items()}


def _take(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _describe_same(manifest: Manifest) -> dict[str, Any]:
    # A model may be reached by several ids, which name recipe and size; notes tell how it was.
    content = asdict(manifest)
    model = content.pop("model")
    del content["behaviour_hash"], content["unknown"]  # which are compared apart
    named = {"id", "notes", "recipe", "size"}
    return {f"model's {k}": v for k, v in model.items() if k not in named} | content
