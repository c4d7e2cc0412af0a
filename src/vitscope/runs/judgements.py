"""Judgements for single images: which map to draw."""

from dataclasses import dataclass

from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.maps.chosen_target import (
    ChosenTarget,
    TargetLike,
    choose_target,
    is_comparable,
    is_named,
)
from vitscope.maps.targets import TARGETS
from vitscope.models.base import ViTAdapter
from vitscope.results.judge_result import JudgeResult
from vitscope.results.judgement_text import find_best
from vitscope.results.map_verdict import REFERENCE_MAP
from vitscope.results.schema_maps import UsedJudgement
from vitscope.runs.references import Wanted


@dataclass(frozen=True, eq=False)
class GivenJudgement:
    """A judgement of the model that explains."""

    about: UsedJudgement
    maps: tuple[str, ...]  # attention, and the map that comes first
    target: ChosenTarget


def read_judgement(
    judged: JudgeResult,
    vit: ViTAdapter,
    wanted: Wanted,
    target: TargetLike | None,
    *,
    has_references: bool,
    are_named: bool,
) -> GivenJudgement:
    """Read a judgement of the same model, layer, size and target; maps may be named otherwise."""
    summary, folder = judged.summary, printable_path(judged.folder)
    _check_model(judged, wanted, folder)
    if summary.layer != wanted.layer:
        raise UsageError(
            f"the judgement {folder} is of layer {summary.layer}, not {wanted.layer}: "
            f"give layer={summary.layer}, or a judgement of layer {wanted.layer}"
        )
    sizes = summary.preprocessing.size, wanted.preprocessing.size
    if sizes[0] != sizes[1]:
        found, asked = ("{} x {} px".format(*size) for size in sizes)
        raise UsageError(
            f"the judgement {folder} was made at {found}, the images are prepared at {asked}: give "
            f"size={sizes[0]}"
        )
    if target is None and is_named(summary.target):
        target = summary.target
    chosen = _choose_same(judged, vit, wanted, target)
    if chosen is None:
        raise UsageError(
            f"the judgement {folder} is of maps that explain the target {summary.target}, which "
            "was not given: give it, by name or as the same vector or image"
        )
    if summary.target in TARGETS and not has_references:
        raise UsageError(
            f"the judgement {folder} is of maps that explain the target {summary.target!r}, for "
            "which an image was compared with the mean of others: give references, such as the "
            "judged images"
        )
    first = find_best(summary)
    return GivenJudgement(
        about=UsedJudgement(
            folder=printable_path(judged.folder.absolute()),
            num_images=summary.data.num_images,
            verdict=summary.verdict,
            drawn=None if are_named else first,
        ),
        maps=tuple(dict.fromkeys(filter(None, (REFERENCE_MAP, first)))),
        target=chosen,
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


def _check_model(judged: JudgeResult, wanted: Wanted, folder: str) -> None:
    identity = judged.identity
    remedy = "give a judgement of the model that explains"
    if identity.weights_hash != wanted.weights_hash:
        raise UsageError(
            f"the judgement {folder} is of {judged.summary.model.id} with other weights: {remedy}"
        )
    if reason := identity.compare_behaviour(wanted.behaviour.digest, wanted.behaviour.unknown):
        raise UsageError(f"the judgement {folder} cannot be used: {reason}; {remedy}")
