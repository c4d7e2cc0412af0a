"""Judging maps: which one is most faithful for a model, on some images."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import JudgeConfig, combine
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.files.workspace import Plan, Workspace
from vitscope.images.addresses import Images
from vitscope.images.image_set import ImageSet
from vitscope.images.paths import check_given
from vitscope.maps.chosen_target import ChosenTarget, TargetLike, choose_target, is_comparable
from vitscope.maps.judgement import check_names, count_passes
from vitscope.maps.method import MapMethod
from vitscope.maps.references import References, make_references
from vitscope.maps.registry import check_maps, find_methods
from vitscope.maps.removal import find_removal
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.image_maps import keep_parts
from vitscope.results.judge_result import MAPS, JudgeResult, read_ids, summarize_tables
from vitscope.results.saved_result import SCORES, concat_tables, write_result
from vitscope.results.schema import DataSummary, JudgementSummary, Settings
from vitscope.results.schema_maps import JudgedImage, JudgedMap, JudgeReference
from vitscope.runs.digests import digest_sets
from vitscope.runs.image_judge import ImageJudge
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    check_steady,
    drop_copies,
    make_image_set,
    shuffle_images,
    take_share,
)
from vitscope.runs.output import Output

DEFAULT_MAPS = (
    "attention",
    "contribution_norm",
    "share",
    "rollout",
    "chefer",
    "legrad",
    "cdam",
    "gradcam",
    "gradient_input",
    "traced",
    "traced_mean",
    "frozen",
)
"""Maps that take few passes; the judge's own runs take hundreds."""

ALWAYS = ("attention", "centre", "edges")
"""What every map is compared with, where it exists."""


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
        check_steady((*image_set.addresses, *compared.addresses), "resume")
    run = JudgeRun(vit, image_set, compared, config, target, given=references is not None)
    execute = partial(run.execute, on_progress=on_progress, on_passes=on_passes)
    return output.write(JudgeResult, run.plan, f"{len(run.images)} images", execute)


def check_settings(config: JudgeConfig) -> None:
    """Refuse what can be refused without a model: half precision, unknown maps and removals."""
    if config.torch_dtype in HALF_PRECISIONS:
        raise UsageError(
            f"maps cannot be judged in {config.dtype}, which rounds away small differences: use "
            "float32"
        )
    check_names(config.maps or ())
    find_methods(config.maps or ())
    for name in config.removals:
        find_removal(name)


def check_enough(num_references: int) -> None:
    """Refuse to judge an image that is compared with none but itself."""
    if num_references < 2:
        raise UsageError(
            f"maps are judged against other images, and there are {num_references}: judge two or "
            "more, or give references"
        )


class JudgeRun(ModelRun[JudgeConfig]):
    """One model, its maps, and one set of images."""

    def __init__(
        self,
        vit: ViTAdapter,
        images: ImageSet,
        compared: ImageSet,
        config: JudgeConfig,
        target: TargetLike | None,
        *,
        given: bool,
    ) -> None:
        """Prepare the run; the model is used only if a setting must be chosen."""
        check_enough(len(compared))
        removals = [find_removal(name) for name in config.removals]
        vit = vit if vit.weights_hash else vit.hashed()  # for all its runs
        self._target = choose_target(vit, target, images.preprocessing, has_references=True)
        self._has_known_target = is_comparable(target)
        self._methods, self._left_out = _choose_methods(self._target, config.maps)
        # A model that averages its tokens has no row to choose.
        layer = vit.select_layer(config.layer) if vit.blocks or config.layer is not None else None
        self._whole, self._compared, self._given = images, compared, given
        images = take_share(images, config.shard)
        super().__init__(vit, images, replace(config, batch_size=1, layer=layer))
        self._judge = ImageJudge(
            images=images, methods=self._methods, removals=removals, sanity=config.sanity
        )
        self._num_repeated = images.num_repeated

    @cached_property
    def plan(self) -> Plan:
        """All that the numbers depend on."""
        config = self.config
        names = ("removals", "sanity", "gallery", "layer")
        return self.make_plan(
            "judgement",
            config.maps or (),
            **digest_sets(names=self._whole, images=self.images, references=self._compared),
            shard=None if config.shard is None else "{}/{}".format(*config.shard),
            **(self._target.describe() if self._has_known_target else {"target": None}),
            maps=[method.name for method in self._methods],
            **{name: getattr(config, name) for name in names},
            has_masks=bool(self.images.masks),
        )

    def execute(
        self,
        folder: Path,
        workspace: Workspace,
        on_progress: OnProgress | None,
        on_passes: OnProgress | None,
    ) -> None:
        """Judge the images that are not done, and write the result."""
        done, count = workspace.find_done(), len(self.images)
        todo = [index for index in range(count) if index not in done]
        with self.placed(), self.placed(self._target.vit):
            references, about = self._read_references()
            rest = ModelRun(self.vit, self.images.select(todo), self.config)
            seen = {name for i in done for name in read_ids(workspace.part(i)).to_pylist()}
            reached, within, of_image = len(done), 0, self._count_passes()

            def add(passes: int) -> None:
                nonlocal within
                within = min(within + passes, of_image)
                if on_passes is not None:
                    on_passes(reached * of_image + within, count * of_image)

            def advance(number: int, _: int) -> None:
                nonlocal reached, within
                reached, within = len(done) + number, 0
                add(0)
                if on_progress is not None:
                    on_progress(reached, count)

            for batch in rest.iter_batches(advance):
                if not drop_copies(batch, seen).ids:
                    self._num_repeated += 1
                    continue
                index = todo[batch.indices[0]]
                given = self._target.make_input(
                    batch.pixels,
                    references,
                    self._methods,
                    layer=self.config.layer,
                    seed=self.config.seed,
                    on_passes=add,
                )
                keep = len(workspace.find_done()) < self.config.gallery
                with rest.plain_errors(batch), workspace.new_part(index) as part:
                    self._judge.write(part, index, batch.ids[0], given, keep=keep)
        self.failures += rest.failures
        self.check_some_read()
        self._finish(folder, workspace, about)

    def _count_passes(self) -> int:
        # For one image.
        layout = self.vit.make_layout(*self.images.preprocessing.size)
        num_patches = len(layout.groups["patches"])
        return len(self._judge.removals) * count_passes(num_patches, len(self._methods))

    def _read_references(self) -> tuple[References, JudgeReference]:
        run = ModelRun(self.vit, self._compared, replace(self.config, batch_size="auto"))
        digest, seen = blake2b(digest_size=16), set[str]()

        def read() -> Iterator[Pixels]:
            for batch in run.iter_batches(None):
                different = drop_copies(batch, seen)
                digest.update("".join(different.ids).encode())
                if different.ids:
                    yield different.pixels

        references = make_references(self._target.vit, read())
        check_enough(references.num_images)
        return references, JudgeReference(
            source="given" if self._given else "the judged images",
            num_images=references.num_images,
            digest=digest.hexdigest(),
        )

    def _finish(self, folder: Path, workspace: Workspace, reference: JudgeReference) -> None:
        parts = [workspace.part(number) for number in sorted(workspace.find_done())]
        for name in (SCORES, MAPS):
            concat_tables(folder, parts, name)
        maps = {
            method.name: JudgedMap(
                title=method.title,
                signed=method.signed,
                targeted=method.targeted,
                source=method.source,
            )
            for method in self._methods
        }
        model = self.describe_model()
        summary = JudgementSummary(
            model=replace(model, notes=(*model.notes, *self._left_out)),
            settings=Settings(),
            preprocessing=self.describe_preprocessing(),
            data=DataSummary(
                num_images=len(read_ids(folder)),
                num_failed=len(self.failures),
                num_repeated=self._num_repeated,
                notes=tuple(self.images.notes),
            ),
            layer=self.config.layer,
            target=self._target.told,
            reference=reference,
            images=keep_parts(JudgedImage, folder, parts),
            **summarize_tables(folder, maps),
        )
        write_result(
            folder,
            summary,
            failures=self.failures,
            provenance=self.make_provenance(self.config.maps or ())
            | {"plan": self.plan, "run": workspace.run_id},
        )


def _choose_methods(
    target: ChosenTarget, asked: Sequence[str] | None
) -> tuple[list[MapMethod], list[str]]:
    # What was not asked for and cannot be made of the model and target is left out, with a note.
    names = [*ALWAYS, *(DEFAULT_MAPS if asked is None else asked)]
    methods, left_out = [], []
    for method in find_methods(names):
        try:
            check_maps([method], target, has_references=True)
            if method.name == "frozen" and asked is None and (edits := target.vit.edits):
                raise UnsupportedModelError(
                    "it has no rule for many edits, and the model is edited "
                    f"({edits[-1].words}); ask for {method.name} to try"
                )
        except (UnsupportedModelError, UsageError) as error:
            if method.name in (asked or ()):
                raise
            left_out.append(f"{method.name} is left out: {error}")
        else:
            methods.append(method)
    return methods, left_out
