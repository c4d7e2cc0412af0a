"""Explanations of single images: maps, numbers and a verdict."""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import RunConfig, check_kind, combine
from vitscope.errors import UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import as_folder
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.paths import check_given
from vitscope.maps.chosen_target import TargetLike, is_comparable
from vitscope.maps.registry import find_methods
from vitscope.models.base import ViTAdapter
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import Explanation
from vitscope.results.judge_result import JudgeResult
from vitscope.runs.explain_run import ExplainRun
from vitscope.runs.model_run import OnProgress, check_steady, make_image_set
from vitscope.runs.output import Output
from vitscope.runs.references import holds_audit


def explain(
    vit: ViTAdapter | nn.Module | str,
    images: ImageSet | Images,
    config: RunConfig | None = None,
    *,
    preprocessed: bool = False,
    layer: int | None = None,
    maps: Sequence[str] | None = None,
    target: TargetLike | None = None,
    references: Images | None = None,
    score: bool = False,
    heads: bool = False,
    judged: JudgeResult | str | Path | None = None,
    reference: AuditResult | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    on_progress: OnProgress | None = None,
    **settings: Any,
) -> Explanation:
    """Show where the [CLS] output of single images comes from, and what its map leaves out.

    The verdict is about how an image differs from the means over reference images, and the image is
    prepared exactly as those were. The reference is the given one; else an audit that is the parent
    folder of `out`, is inside that folder, or has the name of `out` one folder higher; else means
    shipped with vitscope for a few models. It is used only if weights, layer and preprocessing are
    the same. `summary.reference` names it.

    Without a reference there is no verdict, and the numbers are raw. An image then keeps its shape:
    its shorter side gets the input size, and the longer one is scaled likewise and rounded to whole
    patches. With a judgement, a size given as (height, width), a size that is not square, or a
    model that accepts only one size, images are cropped. `framing` says which.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts. It runs on the
            configured device in the configured precision, and is left as it was.
        images: Folders, files, URLs, PIL images, arrays, tensors, datasets, or several of these
            (docs/data.md), or an `ImageSet`.
        config: Settings; the defaults if None. Images run one at a time, whatever the batch size.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        layer: Index of the block whose attention row is explained, from 0, or negative from the
            last; the last one if None.
        maps: Names of map methods (docs/recipes/maps.md). If None, attention, contribution_norm and
            share; with `judged` attention and the map that was judged best, or comes first if the
            judgement cannot tell, which the result then says.
        target: What maps that depend on it explain: "self", "cosine", "logit" (of the class that an
            image gets), "logit:CLASS" (by number or name), a second image ("image:PATH", a path, a
            PIL image, or a preprocessed tensor), a vector that the model's global feature is
            compared with, or a function of `vitscope.maps.targets`. "self" if there are references,
            else "cosine".
        references: Images that maps compare with, such as a few hundred like yours; each is
            prepared like the explained image.
        score: Whether the gap and the skill of each map are measured on each image
            (docs/recipes/which-map.md): by the removal "shuffle" if there are references, else by
            "drop", in about P + 40 M + 282 passes for P patches and M maps.
        heads: Whether the attention of every head in every layer is kept too, as `heads_by_layer`
            of each image, for the figure of that name; takes another pass.
        judged: A judgement of the same weights, layer, input size and target, or its folder. It
            chooses the map and, if none is set, the input size, and maps are scored.
        reference: An audit of the same weights and layer, with the same preprocessing; if None, one
            next to the result or shipped with vitscope.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out`, finished or not, is replaced.
        resume: Whether to resume an interrupted run into `out`; a finished result is kept.
        on_progress: Called with (images done, total) after every image.
        **settings: Settings of `RunConfig` by name, in addition to `config` or instead of it.

    Returns:
        The result.

    Raises:
        UsageError: If settings, images, target, reference, judgement or folder do not fit.
        UnsupportedModelError: If a map or the logits that were asked for do not exist for the
            model.
        ResultError: If the judgement cannot be read.
        ImageReadError: If no image could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the result cannot be written.

    Source:
        Lappe & Giese (NeurIPS 2025), Fig. 4.
    """
    find_methods(maps or ())  # which refuses unknown names before a model is loaded
    config = combine(RunConfig, config, settings)
    folder = as_folder(out)
    if folder is not None and holds_audit(folder):
        raise UsageError(
            f"{printable_path(folder)} holds an audit, which an explanation does not replace: "
            "choose another folder"
        )
    output = Output.check(folder, overwrite=overwrite, resume=resume)
    check_given(images, references)
    vit = open_model(vit)
    if reference is not None:
        check_kind("reference", reference, AuditResult, "an audit, as AuditResult.load(folder)")
    if isinstance(judged, str | os.PathLike):
        judged = JudgeResult.load(judged)
    if judged is not None:
        check_kind("judged", judged, JudgeResult, "a judgement, as JudgeResult.load(folder)")
        if config.size is None and not (preprocessed or isinstance(images, ImageSet)):
            config = replace(config, size=judged.summary.preprocessing.size)
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed)
    others = None
    if references is not None:
        others = ImageSet.from_sources(
            references, image_set.preprocessing, preprocessed=preprocessed
        )
    if resume:
        if not is_comparable(target):
            raise UsageError(
                "resume needs a target by name or a vector: whether two functions are the same "
                "cannot be verified"
            )
        for given in filter(None, (image_set, others)):
            check_steady(given.addresses, "resume")
    run = ExplainRun(
        vit,
        image_set,
        config,
        layer=layer,
        maps=maps,
        target=target,
        references=others,
        score=score,
        heads=heads,
        judged=judged,
        reference=reference,
        out=folder,
    )
    execute = partial(run.execute, on_progress=on_progress)
    return output.write(Explanation, run.plan, f"{len(run.images)} images", execute)
