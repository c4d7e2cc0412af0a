"""The stages of a reproduction: their settings, and how each is run."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from vitscope.config import AuditConfig, OneShotConfig, ReproductionConfig, RunConfig
from vitscope.errors import ResultError, UsageError
from vitscope.models.base import ViTAdapter
from vitscope.reproduction.image_sets import ImageSets
from vitscope.reproduction.state import StageRecord, count_contents
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import Explanation
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.saved_result import SavedResult
from vitscope.runs.audit_loop import audit
from vitscope.runs.explain_loop import explain
from vitscope.runs.model_run import OnProgress
from vitscope.runs.one_shot_loop import one_shot

IMAGES, IMAGENET, ONE_SHOT, MAPS = "images", "imagenet", "one-shot", "maps"

_OF_MAPS = ("dtype", "size", "seed")
_OF_RESTRICTIONS = ("renormalize", "cls_term")
_OF_AUDITS = (*_OF_MAPS, *_OF_RESTRICTIONS, "num_images", "layers")
_OF_ONE_SHOT = ("draws", "classifier", "limit")


class _Stage(NamedTuple):
    result: type[SavedResult]
    # Other settings change numbers by rounding at most, or only the claims and figures.
    settings: tuple[str, ...]
    sets: tuple[str, ...]  # sets of images that the numbers depend on


STAGES: Mapping[str, _Stage] = {
    IMAGES: _Stage(AuditResult, _OF_AUDITS, ("images", "masks")),
    IMAGENET: _Stage(AuditResult, _OF_AUDITS, ("imagenet",)),
    ONE_SHOT: _Stage(OneShotResult, (*_OF_MAPS, *_OF_RESTRICTIONS, *_OF_ONE_SHOT), ("imagenet",)),
    MAPS: _Stage(Explanation, (*_OF_MAPS, "examples"), ("images",)),
}
"""The stages in the order in which they run."""


def describe_stage(stage: str, config: ReproductionConfig, sets: ImageSets) -> dict[str, Any]:
    """Settings and images that the numbers of a stage depend on."""
    settings = {name: getattr(config, name) for name in STAGES[stage].settings}
    return settings | {name: sets.digests.get(name) for name in STAGES[stage].sets}


def run_stage(
    stage: str,
    vit: ViTAdapter,
    config: ReproductionConfig,
    sets: ImageSets,
    *,
    reference: AuditResult | None,
    out: Path,
    on_progress: OnProgress,
) -> None:
    """Run a stage of one model."""
    shared = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    shared["size"] = choose_size(vit, config)
    # The caller has removed unfinished runs of other images or weights.
    again: dict[str, Any] = {"overwrite": True, "resume": True, "on_progress": on_progress}
    if stage == MAPS:
        # Maps are per token, so settings of restricted outputs and groups do not apply.
        plain = RunConfig(**{k: v for k, v in shared.items() if k not in _OF_RESTRICTIONS})
        examples = sets.draw_examples(config.examples, config.seed)
        explain(vit, examples, plain, reference=reference, out=out, **again)
        return
    source = sets.images if stage == IMAGES else sets.imagenet
    assert source is not None
    if stage == ONE_SHOT:
        own = {name: getattr(config, name) for name in _OF_ONE_SHOT}
        one_shot(vit, source, OneShotConfig(**shared, **own), out=out, on_progress=on_progress)
        return
    settings = AuditConfig(
        **shared,
        limit=config.num_images,
        layers=config.layers,
        masks=config.masks if stage == IMAGES else None,
    )
    audit(vit, source, settings, out=out, **again)


def find_damage(stage: str, folder: Path, record: StageRecord) -> str:
    """Why a result on disk is not the recorded one; empty if it is."""
    if not folder.exists():
        return "it was not finished"
    try:
        result = STAGES[stage].result.load(folder)
        made_by = result.summary.model.id, result.provenance["weights_hash"]
        contents = count_contents(folder)
    except (ResultError, LookupError, TypeError, OSError) as error:
        return f"it is damaged ({error})"
    if made_by != (record.model_id, record.weights_hash):
        return "its model or weights are not the recorded ones"
    if record.contents not in {"", contents}:
        return f"it is damaged ({contents}, but {record.contents} when it was finished)"
    return ""


def choose_size(vit: ViTAdapter, config: RunConfig) -> tuple[int, int] | None:
    """Input size for a model: the requested one, rounded to whole patches, or its own."""
    if config.input_size is None:
        return None
    height, width = (
        max(1, round(side / patch)) * patch
        for side, patch in zip(config.input_size, vit.info.patch_size, strict=True)
    )
    try:
        vit.make_layout(height, width)
    except UsageError:
        return None
    return height, width
