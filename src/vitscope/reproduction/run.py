"""All of the paper's experiments on a set of models, one after another, each resumable.

Requirements met here:

- What is finished stays: the same command goes on where it was stopped.
- A model that cannot be had, or fails, is reported, and the others go on.
- Results of different settings or pictures never meet in one folder.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vitscope.audit_loop import audit
from vitscope.class_folders import find_classes
from vitscope.config import AuditConfig, OneShotConfig, ReproductionConfig, RunConfig
from vitscope.errors import UsageError, VitscopeError
from vitscope.explain_loop import explain
from vitscope.images import find_images
from vitscope.model_run import OnProgress
from vitscope.models.base import ViTAdapter
from vitscope.one_shot_loop import one_shot
from vitscope.reproduction.plan import PlannedModel
from vitscope.result import AuditResult
from vitscope.storage import MARKER, check_target, printable_path, read_json, write_json

PICTURES, IMAGENET, ONE_SHOT, MAPS = "pictures", "imagenet", "one-shot", "maps"
_T = TypeVar("_T")
_STATE = "reproduction.json"
_SPEED_ALONE = {"batch_size", "device", "num_workers"}
"""Settings that change no number beyond rounding: they may differ when a run goes on."""
_OF_RESTRICTIONS = {"renormalize", "cls_term"}

OnStage = Callable[[str, str], OnProgress]
"""Called with (model, stage) when a stage begins; told of its progress thereafter."""


@dataclass(frozen=True)
class StageOutcome:
    """How one stage of one model ended.

    Attributes:
        model: Plain name.
        stage: "pictures", "imagenet", "one-shot" or "maps".
        status: "done", "kept" from an earlier run, "failed" or "skipped".
        reason: Why it failed or was skipped; empty otherwise.
    """

    model: str
    stage: str
    status: str
    reason: str = ""


class Reproduction:
    """The experiments of the paper, into one folder.

    Attributes:
        models: The models, in order.
        out: Folder of the whole.
        config: Settings.
    """

    def __init__(
        self,
        models: Sequence[PlannedModel],
        out: Path,
        config: ReproductionConfig,
        *,
        images: Path,
        imagenet: Path | None = None,
    ) -> None:
        """Check what can be checked before a model is loaded; nothing is written yet.

        Args:
            models: The models, in order.
            out: Folder of the whole reproduction.
            config: Settings.
            images: The main set of pictures (the paper's is MS COCO).
            imagenet: A second set; with a folder a class, one-shot classification too.

        Raises:
            UsageError: If pictures are missing, or `out` holds something else, or results of other
                settings or pictures.
        """
        self.models = models
        self.out = out
        self.config = config
        self._images = images
        self._imagenet = imagenet
        self._pictures = find_images([images])
        self._unlabelled = "no second set of pictures was given (--imagenet)"
        if imagenet is not None:
            self._unlabelled = _why_unlabelled(imagenet)
        self._settings = self._describe_settings()
        self._check_out()

    def result_folder(self, model: str, stage: str) -> Path:
        """Where a stage's result lies.

        Args:
            model: Plain name.
            stage: One of the stages.

        Returns:
            The folder; it need not exist.
        """
        return self.out / "results" / model / stage

    def is_done(self, model: str, stage: str) -> bool:
        """Whether a stage is finished.

        Args:
            model: Plain name.
            stage: One of the stages.

        Returns:
            True where its result is whole.
        """
        return (self.result_folder(model, stage) / MARKER).is_file()

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages of each model that the given pictures allow."""
        second = () if self._imagenet is None else (IMAGENET,)
        labelled = () if self._unlabelled else (ONE_SHOT,)
        return (PICTURES, *second, *labelled, MAPS)

    @property
    def has_one_set(self) -> bool:
        """Whether the second set of pictures is the first over again."""
        return bool(self._settings["images"] == self._settings.get("imagenet"))

    def execute(self, on_stage: OnStage) -> list[StageOutcome]:
        """Run everything that is not finished.

        Args:
            on_stage: Called when a stage begins.

        Returns:
            How each stage of each model ended.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(self.out / _STATE, {"settings": self._settings, "outcomes": []})
        outcomes: list[StageOutcome] = []
        for planned in self.models:
            outcomes += self._run_model(planned, on_stage)
            content = {"settings": self._settings, "outcomes": [asdict(o) for o in outcomes]}
            write_json(self.out / _STATE, content)
        return outcomes

    def _run_model(self, planned: PlannedModel, on_stage: OnStage) -> list[StageOutcome]:
        name = planned.name
        missing = [stage for stage in self.stages if not self.is_done(name, stage)]
        kept = [StageOutcome(name, s, "kept") for s in self.stages if s not in missing]
        if self._unlabelled:
            kept.append(StageOutcome(name, ONE_SHOT, "skipped", self._unlabelled))
        if not missing:
            return kept
        vit, reason = _attempt(planned.load)
        if vit is None:
            return [*kept, *(StageOutcome(name, stage, "failed", reason) for stage in missing)]
        outcomes = []
        for stage in missing:
            work = partial(self._run_stage, vit, name, stage, on_stage(name, stage))
            _, reason = _attempt(work)
            status = "failed" if reason else "done"
            outcomes.append(StageOutcome(name, stage, status, reason))
        return [*kept, *outcomes]

    def _run_stage(self, vit: ViTAdapter, name: str, stage: str, on_progress: OnProgress) -> None:
        out = self.result_folder(name, stage)
        size = choose_size(vit, self.config)
        shared = self._shared_settings() | {"size": size}
        if stage in {PICTURES, IMAGENET}:
            source = self._images if stage == PICTURES else self._imagenet
            assert source is not None
            settings = AuditConfig(**shared, limit=self.config.pictures)
            audit(vit, source, settings, out=out, on_progress=on_progress)
        elif stage == ONE_SHOT:
            assert self._imagenet is not None
            own = {n: getattr(self.config, n) for n in ("draws", "classifier", "limit")}
            settings_one_shot = OneShotConfig(**shared, **own)
            one_shot(vit, self._imagenet, settings_one_shot, out=out, on_progress=on_progress)
        else:
            # Means of merged groups are no means of single tokens' groups.
            usable = self.is_done(name, PICTURES) and self.config.cls_term == "own"
            reference = AuditResult.load(self.result_folder(name, PICTURES)) if usable else None
            explain(
                vit,
                self._choose_examples(),
                # A map is of single tokens: nothing is restricted, and no group takes others in.
                RunConfig(**{k: v for k, v in shared.items() if k not in _OF_RESTRICTIONS}),
                reference=reference,
                out=out,
                on_progress=on_progress,
            )

    def _shared_settings(self) -> dict[str, Any]:
        return {field.name: getattr(self.config, field.name) for field in fields(RunConfig)}

    def _choose_examples(self) -> list[Path]:
        # The same pictures for every model, so that their maps can be laid side by side.
        count = min(self.config.examples, len(self._pictures))
        generator = np.random.default_rng(self.config.seed)
        drawn = generator.choice(len(self._pictures), count, replace=False)
        return [self._pictures[i] for i in sorted(drawn)]

    def _describe_settings(self) -> dict[str, Any]:
        settings = {k: v for k, v in asdict(self.config).items() if k not in _SPEED_ALONE}
        settings["images"] = _digest_pictures(self._pictures)
        if self._imagenet is not None:
            settings["imagenet"] = _digest_pictures(find_images([self._imagenet]))
        return settings

    def _may_go_on(self, folder: Path) -> bool:
        # An earlier reproduction; or nothing but the pictures themselves.
        entries = [path for path in folder.iterdir() if not self._images.is_relative_to(path)]
        return (folder / _STATE).is_file() or not entries

    def _check_out(self) -> None:
        check_target(self.out, self._may_go_on)
        if not (self.out / _STATE).is_file():
            return
        before = read_json(self.out / _STATE)["settings"]
        for name, value in self._settings.items():
            if before.get(name, value) != value:
                raise UsageError(
                    f"{self.out} holds a reproduction with other settings ({name} was "
                    f"{before[name]!r}, now {value!r}): choose another folder, or the same settings"
                )


def choose_size(vit: ViTAdapter, config: RunConfig) -> str | None:
    """Input size for a model: the one asked for, rounded to whole patches, or else its own.

    Args:
        vit: The model.
        config: What was asked for.

    Returns:
        A size as `RunConfig` takes it; None for the model's own, also where it takes no other.
    """
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
    return f"{height}x{width}"


def read_outcomes(out: Path) -> list[Mapping[str, str]]:
    """How the stages of the last run ended.

    Args:
        out: Folder of a reproduction.

    Returns:
        The fields of each `StageOutcome`.
    """
    outcomes: list[Mapping[str, str]] = read_json(out / _STATE)["outcomes"]
    return outcomes


def _attempt(work: Callable[[], _T]) -> tuple[_T | None, str]:
    """Do something that may fail without stopping the rest.

    Returns:
        What it gave, and why it failed: one of the two.
    """
    try:
        return work(), ""
    except VitscopeError as error:
        return None, " ".join(str(error).split())
    except Exception as error:  # noqa: BLE001 - whatever a library raises, the other models go on
        return None, " ".join(f"unexpected error, {type(error).__name__}: {error}".split())


def _why_unlabelled(folder: Path) -> str:
    try:
        find_classes(folder)
    except UsageError as error:
        return str(error)
    return ""


def _digest_pictures(paths: Sequence[Path]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for path in paths:
        size = path.stat().st_size if path.exists() else -1
        digest.update(f"{printable_path(path.absolute())}\0{size}\n".encode())
    return f"{len(paths)} pictures, {digest.hexdigest()}"
