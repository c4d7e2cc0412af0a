"""What single images are explained by: means of an audit or shipped with vitscope; a judgement."""

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
from vitscope.maps.chosen_target import (
    ChosenTarget,
    TargetLike,
    choose_target,
    is_comparable,
    is_named,
)
from vitscope.maps.targets import TARGETS
from vitscope.maps.token_maps import DEFAULT_MAPS
from vitscope.models.base import ViTAdapter
from vitscope.models.identity import Behaviour
from vitscope.models.info import ModelInfo
from vitscope.results.audit_result import AuditResult
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import find_best
from vitscope.results.map_verdict import REFERENCE_MAP
from vitscope.results.mergeable import ModelIdentity
from vitscope.results.schema import ReferenceSummary
from vitscope.results.schema_maps import UsedJudgement
from vitscope.results.verdict import MIN_IMAGES

_SHIPPED = "references"  # folder of the means shipped with vitscope, one file per model


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What a reference or a judgement must fit."""

    weights_hash: str
    behaviour: Behaviour  # what the model computes with them
    layer: int
    preprocessing: Preprocessing

    def tell_other(self, model_id: str, identity: ModelIdentity) -> str:
        """Why a result may be of another model; empty if it is of the same."""
        if identity.weights_hash != self.weights_hash:
            return f"it is of {model_id} with other weights"
        return identity.compare_behaviour(self.behaviour.digest, self.behaviour.unknown)


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
    which = f"the reference {folder}"
    _check_model(folder, manifest.model.id, manifest, wanted)
    _check_fits(which, manifest.layers, manifest.preprocessing, wanted)
    sums = audited.read_sums()[wanted.layer]
    if sums.num_images < MIN_IMAGES:
        raise UsageError(
            f"{which} has {sums.num_images} images, too few for a reference: "
            f"audit {MIN_IMAGES} or more"
        )
    if manifest.has_skip and "cls" not in manifest.groups:
        raise UsageError(
            f"{which} counts [CLS]'s attention to itself among other tokens: audit "
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


def _check_model(which: str, model_id: str, identity: ModelIdentity, wanted: Wanted) -> None:
    if reason := wanted.tell_other(model_id, identity):
        raise UsageError(
            f"the reference {which} cannot be used: {reason}; give an audit of the model that "
            "explains"
        )


def _check_fits(
    which: str, layers: tuple[int, ...], preprocessing: Preprocessing, wanted: Wanted
) -> None:
    if wanted.layer not in layers:
        raise UsageError(
            f"{which} has layers {list(layers)}, not {wanted.layer}: give an audit of layer "
            f"{wanted.layer}"
        )
    for setting in sorted(field.name for field in fields(Preprocessing)):
        found, value = getattr(preprocessing, setting), getattr(wanted.preprocessing, setting)
        if found != value:
            raise UsageError(
                f"{which} was audited with {setting} {found}, the images are "
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
            model_id, behaviour_hash = content["model_id"], content["behaviour_hash"]
            if behaviour_hash != wanted.behaviour.digest:
                # Another version of its library may describe the same model differently.
                behaviour_hash = load_model(model_id).describe_behaviour().digest
            which = f"for {model_id} shipped with vitscope"
            weights = wanted.weights_hash
            identity = ModelIdentity(weights_hash=weights, behaviour_hash=behaviour_hash)
            _check_model(which, model_id, identity, wanted)
            preprocessing = read_typed(Preprocessing, content["preprocessing"], which)
            _check_fits(f"the reference {which}", layers, preprocessing, wanted)
            names = [f"{wanted.layer:03d}/{term}" for term in content["terms"]]
            tensors, _ = read_tensors(path, names)
        means = {name.partition("/")[2]: mean for name, mean in tensors.items()}
        about = ReferenceSummary(
            source="shipped",
            images=content["images"],
            num_images=content["num_images"],
            model_id=model_id,
            folder=None,
            means_digest=_digest(means),
        )
        return Reference(about, means)
    return None


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


@dataclass(frozen=True, eq=False)
class Explained:
    """The target and the default maps, which a judgement of the model may choose."""

    target: ChosenTarget
    maps: tuple[str, ...] = DEFAULT_MAPS
    judgement: UsedJudgement | None = None


def choose_explained(
    judged: JudgeResult | None,
    vit: ViTAdapter,
    wanted: Wanted,
    target: TargetLike | None,
    *,
    has_references: bool,
    are_named: bool,
) -> Explained:
    """Follow a judgement of the same model, layer, size and target; maps may be named otherwise."""
    if judged is None:
        preprocessing = wanted.preprocessing
        return Explained(choose_target(vit, target, preprocessing, has_references=has_references))
    summary, folder = judged.summary, printable_path(judged.folder)
    which = f"the judgement {folder}"
    if reason := wanted.tell_other(summary.model.id, judged.identity):
        raise UsageError(
            f"the judgement {folder} cannot be used: {reason}; give a judgement of the model that "
            "explains"
        )
    if summary.layer != wanted.layer:
        raise UsageError(
            f"{which} is of layer {summary.layer}, not {wanted.layer}: "
            f"give layer={summary.layer}, or a judgement of layer {wanted.layer}"
        )
    sizes = summary.preprocessing.size, wanted.preprocessing.size
    if sizes[0] != sizes[1]:
        found, asked = ("{} x {} px".format(*size) for size in sizes)
        raise UsageError(
            f"{which} was made at {found}, the images are prepared at {asked}: give size={sizes[0]}"
        )
    if target is None and is_named(summary.target):
        target = summary.target
    chosen = _choose_same(judged, vit, wanted, target)
    if chosen is None:
        raise UsageError(
            f"{which} is of maps that explain the target {summary.target}, which "
            "was not given: give it, by name or as the same vector or image"
        )
    if summary.target in TARGETS and not has_references:
        raise UsageError(
            f"{which} is of maps that explain the target {summary.target!r}, for "
            "which an image was compared with the mean of others: give references, such as the "
            "judged images"
        )
    first = find_best(summary)
    return Explained(
        target=chosen,
        maps=tuple(dict.fromkeys(filter(None, (REFERENCE_MAP, first)))),  # attention, and the best
        judgement=UsedJudgement(
            folder=printable_path(judged.folder.absolute()),
            num_images=summary.data.num_images,
            verdict=summary.verdict,
            drawn=None if are_named else first,
        ),
    )


def _choose_same(
    judged: JudgeResult, vit: ViTAdapter, wanted: Wanted, target: TargetLike | None
) -> ChosenTarget | None:
    # The target, if it is that of the judgement.
    if target is None or not is_comparable(target):
        return None
    chosen = choose_target(vit, target, wanted.preprocessing, has_references=True)
    found, known = chosen.describe(), judged.described_target
    if found["target"] == known["target"] and found != known:
        raise UsageError(
            f"the judgement {printable_path(judged.folder)} is of {judged.summary.model.id} with "
            "another classifier: give a judgement of the model that explains"
        )
    return chosen if found == known else None
