"""All of the paper's experiments on a set of models, one after another, each resumable."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from vitscope.config import AuditConfig, OneShotConfig, ReproductionConfig, RunConfig
from vitscope.errors import ResultError, UsageError, VitscopeError
from vitscope.extras import tell_unexpected
from vitscope.files.locking import held_alone, remove_leftovers
from vitscope.files.printable import printable_path
from vitscope.files.storage import holds_result_files
from vitscope.files.workspace import discard_workspace
from vitscope.models.base import ViTAdapter
from vitscope.reproduction.image_sets import ImageSets
from vitscope.reproduction.planned_models import PlannedModel
from vitscope.reproduction.state import (
    LOCK,
    STATE,
    ReproductionState,
    StageOutcome,
    StageRecord,
    check_folder,
    count_contents,
)
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import Explanation
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.saved_result import SavedResult
from vitscope.results.verdict import MIN_IMAGES
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

_T = TypeVar("_T")
_MADE_OF_SETS = ("figures", "figures-imagenet", "report.html", "report-imagenet.html")

OnStage = Callable[[str, str], OnProgress]
"""Called with (model, stage) when a stage begins; returns its progress callback."""


class Reproduction:
    """The experiments of the paper, in one folder."""

    def __init__(
        self,
        models: Sequence[PlannedModel],
        out: Path,
        config: ReproductionConfig,
        *,
        images: Path,
        imagenet: Path | None = None,
    ) -> None:
        """Check what can be checked without loading a model; nothing is written yet."""
        self.models = models
        self.out = out
        self.config = config
        self._sets = ImageSets.find(images, imagenet, config.masks)
        self._settings = {stage: self._describe(stage) for stage in STAGES}
        self._weights = {planned.name: planned.weights for planned in models}
        check_folder(out, images)
        self._remember()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that the given images allow, in order."""
        return tuple(stage for stage in STAGES if not self.why_left_out(stage))

    @property
    def model_names(self) -> tuple[str, ...]:
        """The models of this run, and others with results in the folder."""
        return tuple(dict.fromkeys([*self._weights, *self._state.models]))

    def why_left_out(self, stage: str) -> str:
        """Why a stage is left out for all models."""
        return self._sets.left_out.get(stage, "")

    def result_folder(self, model: str, stage: str) -> Path:
        """Folder of a stage's result."""
        return self.out / "results" / model / stage

    def is_done(self, model: str, stage: str) -> bool:
        """Whether a stage is finished, with the current settings."""
        return stage in self.stages and not self._find_fault(model, stage)

    def execute(self, on_stage: OnStage) -> list[StageOutcome]:
        """Run everything that is not finished."""
        outcomes: list[StageOutcome] = []
        with held_alone(self.out, LOCK):
            self._remember()  # another run may have written since
            for name in (STATE, "claims", *_MADE_OF_SETS):
                remove_leftovers(self.out / name)
            for planned in self.models:
                outcomes += self._run_model(planned, on_stage)
                self._state.close(outcomes)
        return outcomes

    def _describe(self, stage: str) -> dict[str, Any]:
        # Settings and images that the numbers of a stage depend on.
        settings = {name: getattr(self.config, name) for name in STAGES[stage].settings}
        return settings | {name: self._sets.digests.get(name) for name in STAGES[stage].sets}

    def _remember(self) -> None:
        self._state = ReproductionState(self.out)
        for model, stage in product(self._state.models, self.stages):
            record = self._state.find(model, stage)
            if record is None or self._find_damage(model, stage, record):
                continue  # not finished
            for name, value in self._settings[stage].items():
                if (before := record.settings.get(name)) != value:
                    raise UsageError(
                        f"{printable_path(self.out)} holds {stage} of {model} with other settings "
                        f"({name} was {before!r}, now {value!r}): choose another folder, or the "
                        "same settings"
                    )

    def _run_model(self, planned: PlannedModel, on_stage: OnStage) -> list[StageOutcome]:
        name = planned.name
        left_out = [stage for stage in STAGES if stage not in self.stages]
        skipped = [StageOutcome(name, s, "skipped", self.why_left_out(s)) for s in left_out]
        missing = [stage for stage in self.stages if not self.is_done(name, stage)]
        kept = [StageOutcome(name, s, "kept") for s in self.stages if s not in missing]
        if not missing:
            return [*kept, *skipped]
        vit, reason = _attempt(lambda: planned.load().hashed())
        if vit is None:
            failed = [StageOutcome(name, stage, "failed", reason) for stage in missing]
            return [*kept, *failed, *skipped]
        return [*(self._run_stage(planned, s, vit, on_stage) for s in self.stages), *skipped]

    def _run_stage(
        self, planned: PlannedModel, stage: str, vit: ViTAdapter, on_stage: OnStage
    ) -> StageOutcome:
        name, folder = planned.name, self.result_folder(planned.name, stage)
        assert vit.weights_hash is not None
        fault = self._find_fault(name, stage, vit.weights_hash)
        if not fault:
            return StageOutcome(name, stage, "kept")
        notes = [f"made again: {fault}"] if folder.exists() else []
        reference = None
        if stage == MAPS:
            reference, why_none = self._find_reference(name)
            notes += [f"without a reference audit: {why_none}"] if why_none else []
        record = StageRecord(
            settings=self._settings[stage],
            model_id=vit.info.id,
            weights=planned.weights,
            weights_hash=vit.weights_hash,
            reference=self._settings[IMAGES] if reference else None,
        )

        def work() -> None:
            self._clear(name, stage, record)
            self._state.begin(name, stage, record)
            progress = on_stage(name, stage)
            self._measure(stage, vit, reference, folder, progress)
            self._state.finish(name, stage, folder)

        _, reason = _attempt(work)
        if reason:
            return StageOutcome(name, stage, "failed", reason)
        return StageOutcome(name, stage, "done", "; ".join(notes))

    def _measure(
        self,
        stage: str,
        vit: ViTAdapter,
        reference: AuditResult | None,
        out: Path,
        on_progress: OnProgress,
    ) -> None:
        shared = {field.name: getattr(self.config, field.name) for field in fields(RunConfig)}
        shared["size"] = choose_size(vit, self.config)
        # The caller has removed unfinished runs of other images or weights.
        again: dict[str, Any] = {"overwrite": True, "resume": True, "on_progress": on_progress}
        if stage == MAPS:
            # Maps are per token, so settings of restricted outputs and groups do not apply.
            plain = RunConfig(**{k: v for k, v in shared.items() if k not in _OF_RESTRICTIONS})
            examples = self._sets.draw_examples(self.config.examples, self.config.seed)
            explain(vit, examples, plain, reference=reference, out=out, **again)
            return
        source = self._sets.images if stage == IMAGES else self._sets.imagenet
        assert source is not None
        if stage == ONE_SHOT:
            own = {name: getattr(self.config, name) for name in _OF_ONE_SHOT}
            one_shot(vit, source, OneShotConfig(**shared, **own), out=out, on_progress=on_progress)
            return
        settings = AuditConfig(
            **shared,
            limit=self.config.num_images,
            layers=self.config.layers,
            masks=self.config.masks if stage == IMAGES else None,
        )
        audit(vit, source, settings, out=out, **again)

    def _find_damage(self, name: str, stage: str, record: StageRecord) -> str:
        # Why a result on disk is not the recorded one; empty if it is.
        folder = self.result_folder(name, stage)
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

    def _clear(self, name: str, stage: str, record: StageRecord) -> None:
        # The record is written before the result, so remove an earlier result first.
        folder = self.result_folder(name, stage)
        remove_leftovers(folder)
        if self._state.find(name, stage) != record:
            discard_workspace(folder)  # finished shards of something else
        if not folder.is_dir():
            return
        is_own = self._state.find(name, stage) is not None and holds_result_files(folder)
        if any(folder.iterdir()) and not is_own:
            raise UsageError(
                f"{printable_path(folder)} holds files that vitscope did not write: move them away"
            )
        shutil.rmtree(folder)

    def _find_fault(self, name: str, stage: str, weights_hash: str | None = None) -> str:
        # Why a result differs from one made now; empty if it does not.
        record = self._state.find(name, stage)
        if record is None:
            return "nothing is known of it"
        if damage := self._find_damage(name, stage, record):
            return damage
        if record.settings != self._settings[stage]:
            return "it was made with other settings"
        weights = self._weights.get(name)
        if weights and record.weights != weights:
            return f"its weights were those of {record.weights}, and are now of {weights}"
        if weights_hash not in {None, record.weights_hash}:
            return "the model's weights have changed"
        return self._find_fault_of_maps(name, record) if stage == MAPS else ""

    def _find_fault_of_maps(self, name: str, record: StageRecord) -> str:
        audited = self._settings[IMAGES]
        if record.reference == audited:
            return ""  # even if that audit has been lost since
        reference, _ = self._find_reference(name)
        if reference is not None:
            return "an audit to compare it with exists now"
        return "" if record.reference is None else "it was compared with an audit of other settings"

    def _find_reference(self, name: str) -> tuple[AuditResult | None, str]:
        # The reference audit of the maps, or why there is none.
        if self.config.cls_term != "own":
            # Means of merged groups do not give the means of each group.
            return None, "[CLS]'s attention to itself is counted among other tokens"
        if not self.is_done(name, IMAGES):
            return None, "there is none"
        found = AuditResult.load(self.result_folder(name, IMAGES))
        if (count := found.summary.data.num_images) < MIN_IMAGES:
            return None, f"it has {count} images, and means need {MIN_IMAGES}"
        return found, ""


def _attempt(work: Callable[[], _T]) -> tuple[_T | None, str]:
    """Run something whose failure must not stop the rest."""
    try:
        return work(), ""
    except VitscopeError as error:
        return None, " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - libraries may raise anything; the other models run
        return None, " ".join(tell_unexpected(error).split())


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
