"""Judging maps: which one is most faithful for a model, on some images."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import JudgeConfig, combine
from vitscope.errors import UsageError
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.paths import check_given
from vitscope.maps.chosen_target import TargetLike, is_comparable
from vitscope.models.base import ViTAdapter
from vitscope.results.judge_result import JudgeResult
from vitscope.runs.judge_run import JudgeRun, check_settings
from vitscope.runs.model_run import OnProgress, check_steady, make_image_set, shuffle_images
from vitscope.runs.output import Output


def judge(
    vit: ViTAdapter | nn.Module | str,
    images: ImageSet | Images,
    config: JudgeConfig | None = None,
    *,
    target: TargetLike | None = None,
    references: ImageSet | Images | None = None,
    preprocessed: bool = False,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    on_passes: OnProgress | None = None,
    **settings: Any,
) -> JudgeResult:
    """Judge maps of a model by what its output loses when the patches they point at are removed.

    For every image and map, patches are removed from the most and from the least important, and
    the target is measured: a map is faithful if the first costs much and the second little. No
    labels are needed. Random orders, the distance from the centre, edges and the order by single
    deletions (the oracle) are judged alongside.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts. It runs on the
            configured device in the configured precision, and is left as it was.
        images: Folders, files, URLs, PIL images, arrays, tensors, datasets, or several of these
            (docs/data.md), or an `ImageSet`.
        config: Settings; the defaults if None. Images run one at a time, whatever the batch size.
        target: The number that maps explain, as in `explain`: "self" (the default, the image's own
            feature less the mean of the references), "cosine", "logit", "logit:CLASS", a second
            image, a vector, or a function of `vitscope.maps.targets`.
        references: Images to compare with, prepared alike: their mean centres the target, up to
            four of them are what traced maps and the removal "shuffle" use. If None, the judged
            images themselves, those of other shards included; traced maps and "shuffle" never
            compare an image with itself.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out`, finished or not, is replaced.
        resume: Whether to resume an interrupted run into `out`; a finished result is kept.
        on_progress: Called with (images done, total) after every image.
        on_passes: Called with (forward passes done, about how many in all) while images are judged.
        **settings: Settings of `JudgeConfig` by name, in addition to `config` or instead of it.

    Returns:
        The result.

    Raises:
        UsageError: If settings, images or folder do not fit.
        UnsupportedModelError: If a map or the logits that were asked for do not exist for the
            model.
        ImageReadError: If no image could be read.
        ImbalanceError: If a ledger or a trace does not balance.
        NonFiniteError: If an output is not finite.
        VitscopeError: If the result cannot be written.

    Source:
        The scores name their own (docs/recipes/which-map.md).
    """
    config = combine(JudgeConfig, config, settings)
    check_settings(config)
    output = Output.check(out, overwrite=overwrite, resume=resume)
    check_given(images, references)
    vit = open_model(vit)
    if (resume or config.shard is not None) and not is_comparable(target):
        raise UsageError(
            f"{'resume' if resume else 'shard'} needs a target by name or a vector: whether two "
            "functions are the same cannot be verified"
        )
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed).without_copies()
    compared = image_set
    if references is not None:
        others = replace(config, limit=None, masks=None)
        compared = make_image_set(vit, references, others, preprocessed=preprocessed)
        compared = compared.without_copies()
    compared = replace(shuffle_images(compared, config.seed), masks=())
    if resume:
        check_steady(image_set.addresses, "resume")
        check_steady(compared.addresses, "resume")
    run = JudgeRun(vit, image_set, compared, config, target, given=references is not None)
    execute = partial(run.execute, on_progress=on_progress, on_passes=on_passes)
    return output.write(JudgeResult, run.plan, run.num_images, execute)
