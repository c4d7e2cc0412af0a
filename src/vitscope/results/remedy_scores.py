"""One-shot classification and judged maps before and after an edit: paired differences."""

import numpy as np

from vitscope.errors import ResultError
from vitscope.files.printable import printable_path
from vitscope.metrics.one_shot import average_draws
from vitscope.results.judge_result import JudgeResult
from vitscope.results.map_verdict import BASELINES, replicate_skill
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.schema_remedies import Change, ClassifiedImages, JudgedImages

READOUT, CLASSIFIER = "embedding", "nearest"
"""The global feature is classified, which is what a user of the model gets."""


def describe_classified(result: OneShotResult) -> ClassifiedImages:
    """What was classified."""
    summary = result.summary
    return ClassifiedImages(
        num_images=summary.data.num_images,
        num_classes=summary.data.num_classes,
        draws=summary.draws,
        chance=summary.chance,
    )


def describe_judged(result: JudgeResult) -> JudgedImages:
    """What was judged; baselines are no maps of the model."""
    summary = result.summary
    return JudgedImages(
        num_images=summary.data.num_images,
        target=summary.target,
        removal=next(iter(summary.removals)),
        maps={name: one.title for name, one in summary.maps.items() if name not in BASELINES},
    )


def compare_one_shots(before: OneShotResult, after: OneShotResult) -> dict[str, Change]:
    """Accuracies of the global feature, and of that from patches alone, paired by draw.

    A draw has the same training and test images before and after; the classifier is trained on
    each model's own full feature.
    """
    if before.provenance.get("drawn") != after.provenance.get("drawn"):
        raise ResultError(
            f"{printable_path(after.folder)} drew other images than "
            f"{printable_path(before.folder)}: compare one-shot results of the same images and seed"
        )
    return {
        f"{part}_{top}": _compare_draws(*(_read_draws(one, part, top) for one in (before, after)))
        for part in ("full", "patches")
        for top in ("top1", "top5")
    }


def _compare_draws(before: np.ndarray, after: np.ndarray) -> Change:
    return Change(
        before=average_draws(before),
        after=average_draws(after),
        difference=average_draws(after - before, at_least=-1.0),
    )


def _read_draws(result: OneShotResult, part: str, top: str) -> np.ndarray:
    path = (CLASSIFIER, READOUT, part)
    rows = result.draws.to_pylist()
    return np.array(
        [row[top] for row in rows if (row["classifier"], row["readout"], row["part"]) == path]
    )


def compare_judgements(before: JudgeResult, after: JudgeResult) -> dict[str, Change]:
    """Skill of the maps that both models have, paired by image.

    Each model's maps explain its own target and are measured on its own outputs.
    """
    (ids, first), (theirs, second) = before.read_gaps(), after.read_gaps()
    if ids != theirs:
        raise ResultError(
            f"{printable_path(after.folder)} is of other images than "
            f"{printable_path(before.folder)}: compare judgements of the same images"
        )
    found = {}
    for name in first:
        if name in second and name not in {*BASELINES}:
            old, new = (
                replicate_skill(gaps[name], gaps["random"], gaps["oracle"], ids)
                for gaps in (first, second)
            )
            found[name] = Change(
                before=old.estimate(), after=new.estimate(), difference=(new - old).estimate()
            )
    return found
