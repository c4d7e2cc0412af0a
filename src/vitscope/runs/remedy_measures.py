"""What is compared of remedies where asked for: one-shot classification, and judged maps."""

from dataclasses import dataclass, fields
from itertools import compress
from pathlib import Path
from typing import Any

from vitscope.config import AuditConfig, JudgeConfig, OneShotConfig, RunConfig, check_kind
from vitscope.errors import UsageError
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.labels import find_classes
from vitscope.models.base import ViTAdapter
from vitscope.results.judge_result import JudgeResult
from vitscope.results.one_shot_result import OneShotResult
from vitscope.results.remedy_comparison import (
    compare_judgements,
    compare_one_shots,
    describe_classified,
    describe_judged,
)
from vitscope.results.schema_remedies import JUDGE, ONE_SHOT, PLACES
from vitscope.runs.judge_run import check_enough, check_settings, judge
from vitscope.runs.model_run import OnProgress, check_steady
from vitscope.runs.one_shot_loop import one_shot


@dataclass(frozen=True)
class Measured:
    """What was measured of one model besides its audit; None for what was not asked for."""

    one_shot: OneShotResult | None
    judged: JudgeResult | None

    def describe(self) -> dict[str, Any]:
        """Fields of the comparison that say what was measured."""
        return {
            "one_shot": None if self.one_shot is None else describe_classified(self.one_shot),
            "judged": None if self.judged is None else describe_judged(self.judged),
        }

    def compare(self, after: "Measured") -> dict[str, Any]:
        """Fields of an edit that this is the original of."""
        found: dict[str, Any] = {}
        if self.one_shot is not None and after.one_shot is not None:
            found["one_shot"] = compare_one_shots(self.one_shot, after.one_shot)
        if self.judged is not None and after.judged is not None:
            found["skill"] = compare_judgements(self.judged, after.judged)
        return found


@dataclass(frozen=True, eq=False, kw_only=True)
class Asked:
    """What is to be measured of the original and of each edit besides their audits."""

    labelled: Images | None  # for one-shot classification
    preprocessed: bool
    one_shot_config: OneShotConfig
    judged: ImageSet | None
    judge_config: JudgeConfig
    num_images: int  # of each model

    @classmethod
    def check(
        cls,
        vit: ViTAdapter,
        images: ImageSet,
        config: AuditConfig,
        *,
        labelled: Images | None,
        num_judged: int,
        preprocessed: bool,
        resume: bool,
    ) -> "Asked":
        """Refuse before anything runs what would fail after the first audit."""
        check_num_judged(num_judged)
        classes = None if labelled is None else find_classes(labelled, preprocessed=preprocessed)
        if resume and classes is not None:
            check_steady(classes.list_images(), "resume")
        judged = images.limited(num_judged, config.seed) if num_judged else None
        judge_config = _choose_judge_config(config)
        if judged is not None:
            check_enough(len(judged))
            check_settings(judge_config)
        return cls(
            labelled=labelled,
            preprocessed=preprocessed,
            one_shot_config=_choose_one_shot_config(vit, images, config),
            judged=judged,
            judge_config=judge_config,
            num_images=len(classes.list_images() if classes else ()) + len(judged or ()),
        )

    @property
    def places(self) -> list[str]:
        """Where results of this comparison lie."""
        return list(compress(PLACES, (True, self.labelled is not None, self.judged is not None)))

    def measure(
        self,
        vit: ViTAdapter,
        folder: Path,
        name: str,
        *,
        overwrite: bool,
        resume: bool,
        on_progress: OnProgress,
    ) -> Measured:
        """Classify, and judge maps, with one model."""
        again: dict[str, Any] = {"overwrite": overwrite, "resume": resume}
        classified = judged = None
        if self.labelled is not None:
            classified = one_shot(
                vit,
                self.labelled,
                self.one_shot_config,
                preprocessed=self.preprocessed,
                out=folder / ONE_SHOT / name,
                on_progress=on_progress,
                **again,
            )
        if self.judged is not None:
            before = self.num_images - len(self.judged)
            judged = judge(
                vit,
                self.judged,
                self.judge_config,
                out=folder / JUDGE / name,
                on_progress=lambda done, _: on_progress(before + done, self.num_images),
                **again,
            )
        return Measured(classified, judged)


def _choose_one_shot_config(
    vit: ViTAdapter, images: ImageSet, config: AuditConfig
) -> OneShotConfig:
    # The audits' settings, at their input size.
    shared = {field.name: getattr(config, field.name) for field in fields(RunConfig)}
    given = images.preprocessing
    is_own = given.size == vit.preprocessing.size or given.pipeline == "given"
    return OneShotConfig(**shared | {"size": None if is_own else given.size, "draft": given.draft})


def _choose_judge_config(config: AuditConfig) -> JudgeConfig:
    # The images are drawn and prepared already.
    names = ("name", "batch_size", "device", "dtype", "num_workers")
    shared = {name: getattr(config, name) for name in names}
    return JudgeConfig(**shared, gallery=min(config.gallery, JudgeConfig.gallery))


def check_num_judged(number: int) -> None:
    """Refuse a number of images that maps cannot be judged on."""
    check_kind("judge", number, int, "a number of images such as 50, or 0")
    if number < 0 or number == 1:
        raise UsageError(
            f"judge {number}: expected 0 or at least 2 images, for images are compared"
        )
