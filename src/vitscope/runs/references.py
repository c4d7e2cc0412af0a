"""References for single images: the means of an audit, or those shipped with vitscope."""

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from importlib.resources import as_file, files
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from vitscope.adapters.registry import load_model
from vitscope.config import RunConfig
from vitscope.errors import ResultError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import MARKER
from vitscope.files.tensor_files import read_tensors
from vitscope.files.typed_json import read_typed
from vitscope.images.preprocessing import Preprocessing
from vitscope.models.identity import Behaviour
from vitscope.models.info import ModelInfo
from vitscope.results.audit_result import AuditResult
from vitscope.results.schema import ReferenceSummary
from vitscope.results.verdict import MIN_IMAGES

_SHIPPED = "references"  # folder of the means shipped with vitscope, one file per model


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a reference or a judgement must fit."""

    weights_hash: str
    behaviour: Behaviour  # what the model computes with them
    layer: int
    preprocessing: Preprocessing


@dataclass(frozen=True, eq=False)
class Reference:
    """Means on which the terms of an image are centred, and the images behind them."""

    about: ReferenceSummary
    means: Mapping[str, Float[Tensor, " dim"]]  # of each term


def _digest(means: Mapping[str, Float[Tensor, " dim"]]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, mean in sorted(means.items()):
        digest.update(f"{name} {mean.dtype} {len(mean)}\n".encode())
        digest.update(mean.contiguous().numpy().data)
    return digest.hexdigest()


def read_reference(audited: AuditResult, wanted: Wanted) -> Reference:
    """Read the means of an audit of the same model with the same preprocessing."""
    manifest, folder = audited.manifest, printable_path(audited.folder)
    if manifest.weights_hash != wanted.weights_hash:
        raise UsageError(
            f"the reference {folder} is of {manifest.model.id} with other weights: give an "
            "audit of the model that explains"
        )
    behaviour = wanted.behaviour
    if reason := manifest.compare_behaviour(behaviour.digest, behaviour.unknown):
        raise UsageError(
            f"the reference {folder} cannot be used: {reason}; give an audit of the model that "
            "explains"
        )
    _check_fits(folder, manifest.layers, manifest.preprocessing, wanted)
    sums = audited.read_sums()[wanted.layer]
    if sums.num_images < MIN_IMAGES:
        raise UsageError(
            f"the reference {folder} has {sums.num_images} images, too few for a reference: "
            f"audit {MIN_IMAGES} or more"
        )
    if manifest.has_skip and "cls" not in manifest.groups:
        raise UsageError(
            f"the reference {folder} counts [CLS]'s attention to itself among other tokens: audit "
            "with cls_term='own'"
        )
    terms = [*manifest.groups, *(["skip"] if manifest.has_skip else [])]
    means = {name: sums.compute_mean(f"term/{name}") for name in terms}
    about = ReferenceSummary(
        source="given",
        images=f"of the audit {folder}",
        num_images=sums.num_images,
        model_id=manifest.model.id,
        folder=printable_path(audited.folder.absolute()),
        means_digest=_digest(means),
    )
    return Reference(about, means)


def _check_fits(
    which: str, layers: tuple[int, ...], preprocessing: Preprocessing, wanted: Wanted
) -> None:
    if wanted.layer not in layers:
        raise UsageError(
            f"the reference {which} has layers {list(layers)}, not {wanted.layer}: give "
            f"an audit of layer {wanted.layer}"
        )
    for setting in sorted(field.name for field in fields(Preprocessing)):
        found, value = getattr(preprocessing, setting), getattr(wanted.preprocessing, setting)
        if found != value:
            raise UsageError(
                f"the reference {which} was audited with {setting} {found}, the images are "
                f"prepared with {value}: give an audit with the same {setting}"
            )


def find_reference(wanted: Wanted, out: Path | None) -> tuple[Reference | None, list[str]]:
    """Find a fitting reference: of the audits next to the result the largest, or one shipped."""
    found: list[Reference] = []
    unused: list[str] = []
    for audited in _list_audits(out) if out is not None else ():
        try:
            if audited.manifest.weights_hash == wanted.weights_hash:
                found.append(read_reference(audited, wanted))
        except (ResultError, UsageError) as error:
            unused.append(f"not used: {error}")
    if found:
        best = max(found, key=lambda one: one.about.num_images)
        images = f"{best.about.images}, next to this result"
        about = replace(best.about, source="found", images=images)
        return replace(best, about=about), unused
    try:
        return _find_shipped(wanted), unused
    except UsageError as error:
        return None, [*unused, f"not used: {error}"]


def holds_audit(folder: Path) -> bool:
    """Whether a folder is an audit result that this version can read."""
    try:
        if not (folder / MARKER).is_file():
            return False
        AuditResult.load(folder)
    except (OSError, ResultError):
        return False
    return True


def _list_audits(out: Path) -> Iterator[AuditResult]:
    # The command writes to OUT/MODEL. Look at OUT, its subfolders, and MODEL next to OUT.
    home = out.parent
    try:
        beside = sorted(path for path in home.iterdir() if not path.name.startswith("."))
    except OSError:  # missing or unreadable
        beside = []
    for folder in dict.fromkeys([home, *beside, home.parent / out.name]):
        if holds_audit(folder):
            yield AuditResult(folder)


def _find_shipped(wanted: Wanted) -> Reference | None:
    for entry in sorted(files("vitscope.runs").joinpath(_SHIPPED).iterdir(), key=lambda e: e.name):
        with as_file(entry) as path:
            _, metadata = read_tensors(path, [])
            content = json.loads(metadata["reference"])
            if content["weights_hash"] != wanted.weights_hash:
                continue
            layers = tuple(content["layers"])
            which = f"for {content['model_id']} shipped with vitscope"
            _check_behaviour(which, content["behaviour_hash"], content["model_id"], wanted)
            preprocessing = read_typed(Preprocessing, content["preprocessing"], which)
            _check_fits(which, layers, preprocessing, wanted)
            names = [f"{wanted.layer:03d}/{term}" for term in content["terms"]]
            tensors, _ = read_tensors(path, names)
        means = {name.partition("/")[2]: mean for name, mean in tensors.items()}
        about = ReferenceSummary(
            source="shipped",
            images=content["images"],
            num_images=content["num_images"],
            model_id=content["model_id"],
            folder=None,
            means_digest=_digest(means),
        )
        return Reference(about, means)
    return None


def _check_behaviour(which: str, behaviour_hash: str, model_id: str, wanted: Wanted) -> None:
    # Another version of its library may describe the same model differently: load it to compare.
    if behaviour_hash != wanted.behaviour.digest and (
        load_model(model_id).describe_behaviour() != wanted.behaviour
    ):
        reason = "the model that explains has its weights and computes otherwise"
        raise UsageError(
            f"the reference {which} cannot be used: {reason}; give an audit of the model that "
            "explains"
        )


def advise(info: ModelInfo, layer: int, last_layer: int, config: RunConfig) -> str:
    """Advice for a run without a reference."""
    if info.source == ModelInfo.source:
        return "audit 100 or more images with this model and give the result as reference"
    words = ["vitscope", "audit", "IMAGES", "--model", shlex.quote(info.id)]
    if layer != last_layer:
        words += ["--layers", str(layer)]
    if config.input_size is not None:
        height, width = config.input_size
        words += ["--size", str(height) if height == width else f"{height}x{width}"]
    if config.draft:
        words.append("--draft")
    told = " ".join([*words, "--out", "DIR"])
    return f"run `{told}` on 100 images or more, and give DIR as reference"
