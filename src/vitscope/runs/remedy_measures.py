"""What is compared of remedies where asked for: one-shot classification, and judged maps."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from vitscope.config import AuditConfig, JudgeConfig, OneShotConfig, RunConfig, check_kind
from vitscope.errors import UsageError
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.labels import find_classes
from vitscope.models.base import ViTAdapter
from vitscope.results.remedy_comparison import (
    compare_judgements,
    compare_one_shots,
    describe_classified,
    describe_judged,
)
from vitscope.results.schema_remedies import JUDGE, ONE_SHOT
from vitscope.runs.judge_run import check_enough, check_settings, judge
from vitscope.runs.model_run import check_steady
from vitscope.runs.one_shot_loop import one_shot


@dataclass(frozen=True, eq=False, kw_only=True)
class Measure:
    """What is measured of the original and of each edit besides their audits."""

    place: str  # folder of its results
    num_images: int  # of each model
    run: Callable[..., Any]  # takes the model, and where the result goes
    field: str  # of the comparison, which `describe` makes of the original's result
    describe: Callable[[Any], Any]
    change: str  # field of an edit, which `compare` makes of the results before and after
    compare: Callable[[Any, Any], Any]


def choose_measures(
    vit: ViTAdapter,
    images: ImageSet,
    config: AuditConfig,
    *,
    labelled: Images | None,
    num_judged: int,
    preprocessed: bool,
    resume: bool,
) -> list[Measure]:
    """Refuse before anything runs what would fail after the first audit."""
    check_num_judged(num_judged)
    found: list[Measure] = []
    if labelled is not None:
        given = find_classes(labelled, preprocessed=preprocessed).list_images()
        if resume:
            check_steady(given, "resume")
        one_shot_config = _choose_one_shot_config(vit, images, config)
        found.append(
            Measure(
                place=ONE_SHOT,
                num_images=len(given),
                run=partial(
                    one_shot, images=labelled, config=one_shot_config, preprocessed=preprocessed
                ),
                field="one_shot",
                describe=describe_classified,
                change="one_shot",
                compare=compare_one_shots,
            )
        )
    if num_judged:
        judged, judge_config = images.limited(num_judged, config.seed), _choose_judge_config(config)
        check_enough(len(judged))
        check_settings(judge_config)
        found.append(
            Measure(
                place=JUDGE,
                num_images=len(judged),
                run=partial(judge, images=judged, config=judge_config),
                field="judged",
                describe=describe_judged,
                change="skill",
                compare=compare_judgements,
            )
        )
    return found


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
