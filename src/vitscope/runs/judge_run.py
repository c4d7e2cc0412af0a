"""One model, its maps and one set of images: judging them all, and writing the result."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

from vitscope.config import JudgeConfig
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.files.workspace import Plan, Workspace
from vitscope.images.image_set import ImageSet
from vitscope.maps.chosen_target import ChosenTarget, TargetLike, choose_target, is_comparable
from vitscope.maps.judgement import check_names, count_passes
from vitscope.maps.method import MapMethod
from vitscope.maps.references import References, make_references
from vitscope.maps.registry import check_maps, find_methods
from vitscope.maps.removal import find_removal
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.image_maps import keep_parts
from vitscope.results.judge_result import MAPS, read_ids, summarize_tables
from vitscope.results.saved_result import SCORES, concat_tables, write_result
from vitscope.results.schema import DataSummary, JudgementSummary, Settings
from vitscope.results.schema_maps import JudgedImage, JudgedMap, JudgeReference
from vitscope.runs.audit_plan import digest_files, digest_names, hash_held
from vitscope.runs.image_judge import ImageJudge
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    describe_preprocessing,
    drop_copies,
    find_share,
)

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


class JudgeRun:
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
        self._layer = (
            vit.select_layer(config.layer) if vit.blocks or config.layer is not None else None
        )
        self._vit, self._compared = vit, compared
        self._whole = images
        self._images = images.select(find_share(images, config.shard))
        self._config = replace(config, batch_size=1, layer=self._layer)
        self._run = ModelRun(vit, self._images, self._config)
        self._judge = ImageJudge(
            images=self._images, methods=self._methods, removals=removals, sanity=config.sanity
        )
        self._given = given
        self._num_repeated = self._images.num_repeated

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self._images)

    @cached_property
    def plan(self) -> Plan:
        """All that the numbers depend on."""
        config = self._config
        names = ("removals", "sanity", "gallery", "seed", "dtype")
        versions = hash_held(self._whole, self._compared)
        settings = {
            "kind": "judgement",
            "images": digest_files(self._images, versions),
            "names": digest_names(self._whole, versions),
            "shard": None if config.shard is None else "{}/{}".format(*config.shard),
            **(self._target.describe() if self._has_known_target else {"target": None}),
            "maps": [method.name for method in self._methods],
            **{name: getattr(config, name) for name in names},
            "layer": self._layer,
            "has_masks": bool(self._images.masks),
            "references": digest_files(self._compared, versions),
        }
        return self._run.make_plan(settings, config.maps or ())

    def execute(
        self,
        folder: Path,
        workspace: Workspace,
        on_progress: OnProgress | None,
        on_passes: OnProgress | None,
    ) -> None:
        """Judge the images that are not done, and write the result."""
        done = workspace.find_done()
        todo = [index for index in range(len(self._images)) if index not in done]
        device, dtype = self._run.device, self._config.torch_dtype
        with self._run.placed(), self._target.vit.placed(device, dtype):
            references, about = self._read_references()
            run = ModelRun(self._vit, self._images.select(todo), self._config)
            seen = {name for i in done for name in read_ids(workspace.part(i)).to_pylist()}

            reached, within, of_image = len(done), 0, self._count_passes()

            def count(passes: int) -> None:
                nonlocal within
                within = min(within + passes, of_image)
                if on_passes is not None:
                    on_passes(reached * of_image + within, len(self._images) * of_image)

            def advance(number: int, _: int) -> None:
                nonlocal reached, within
                reached, within = len(done) + number, 0
                count(0)
                if on_progress is not None:
                    on_progress(reached, len(self._images))

            for batch in run.iter_batches(advance):
                if not drop_copies(batch, seen).ids:
                    self._num_repeated += 1
                    continue
                index = todo[batch.indices[0]]
                given = self._target.make_input(
                    batch.pixels,
                    references,
                    self._methods,
                    layer=self._layer,
                    seed=self._config.seed,
                    on_passes=count,
                )
                keep = len(workspace.find_done()) < self._config.gallery
                with run.plain_errors(batch), workspace.new_part(index) as part:
                    self._judge.write(part, index, batch.ids[0], given, keep=keep)
        self._run.failures[:] = run.failures
        self._run.check_some_read()
        self._finish(folder, workspace, about)

    def _count_passes(self) -> int:
        # For one image.
        layout = self._vit.make_layout(*self._images.preprocessing.size)
        num_patches = len(layout.groups["patches"])
        return len(self._judge.removals) * count_passes(num_patches, len(self._methods))

    def _read_references(self) -> tuple[References, JudgeReference]:
        run = ModelRun(self._vit, self._compared, replace(self._config, batch_size="auto"))
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
        model = self._run.describe_model()
        summary = JudgementSummary(
            model=replace(model, notes=(*model.notes, *self._left_out)),
            settings=Settings(),
            preprocessing=describe_preprocessing(self._vit, self._images.preprocessing),
            data=DataSummary(
                num_images=len(read_ids(folder)),
                num_failed=len(self._run.failures),
                num_repeated=self._num_repeated,
                notes=tuple(self._images.notes),
            ),
            layer=self._layer,
            target=self._target.told,
            reference=reference,
            images=keep_parts(JudgedImage, folder, parts),
            **summarize_tables(folder, maps),
        )
        write_result(
            folder,
            summary,
            failures=self._run.failures,
            provenance={
                **self._run.make_provenance(self._config.maps or ()),
                "plan": self.plan,
                "run": workspace.run_id,
            },
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
