"""Judging maps: which one is most faithful for a model, on some images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import JudgeConfig, combine
from vitscope.errors import UnsupportedModelError, UsageError
from vitscope.files.storage import (
    as_folder,
    check_target,
    is_result,
    never,
    scratch_folder,
    staged_folder,
)
from vitscope.files.workspace import Plan, Workspace, open_workspace
from vitscope.images.addresses import Images, read_image
from vitscope.images.decoding import decode_for_model, prepare_image
from vitscope.images.image_set import ImageSet
from vitscope.images.in_memory import HeldImage
from vitscope.images.masks import crop_mask, decode_mask
from vitscope.maps.chosen_target import TargetLike, choose_target
from vitscope.maps.judgement import SCORES, Judgement, judge_images
from vitscope.maps.method import MapInput, MapMethod
from vitscope.maps.references import References, make_references
from vitscope.maps.registry import check_maps, find_method
from vitscope.maps.removal import find_removal
from vitscope.maps.sanity import measure_sanity, measure_sensitivity
from vitscope.maps.targets import TARGETS, explain_other
from vitscope.metrics.faithfulness import compute_rank
from vitscope.metrics.plausibility import (
    compute_average_precision,
    compute_mass_in_mask,
    compute_pointing,
)
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.image_maps import ImageMaps
from vitscope.results.judge_result import (
    PLAUSIBILITY,
    JudgeResult,
    concat_tables,
    keep_images,
    summarize_tables,
    write_part_maps,
    write_tables,
)
from vitscope.results.saved_result import write_result
from vitscope.results.schema import DataSummary, JudgementSummary, Settings
from vitscope.results.schema_maps import JudgedMap, JudgeReference
from vitscope.runs.audit_plan import digest_files
from vitscope.runs.chosen_maps import place_values
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    describe_preprocessing,
    make_image_set,
    shuffle_images,
)
from vitscope.runs.resources import list_versions

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
            images themselves; traced maps and "shuffle" never compare an image with itself.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out`, finished or not, is replaced.
        resume: Whether to resume an interrupted run into `out`.
        on_progress: Called with (images done, total) after every image.
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
    vit = open_model(vit)
    config = combine(JudgeConfig, config, settings)
    folder = as_folder(out)
    if resume and folder is None:
        raise UsageError("no folder was given for the result: resume needs `out`")
    if resume and callable(target) and target not in TARGETS.values():
        raise UsageError(
            "resume needs a target by name or a vector: whether two functions are the same cannot "
            "be verified"
        )
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed).without_copies()
    compared = image_set
    if references is not None:
        others = replace(config, limit=None, masks=None)
        compared = make_image_set(vit, references, others, preprocessed=preprocessed)
        compared = compared.without_copies()
    compared = replace(shuffle_images(compared, config.seed), masks=())
    run = JudgeRun(vit, image_set, compared, config, target, given=references is not None)
    if folder is None:
        with scratch_folder() as made, TemporaryDirectory(prefix="vitscope-parts-") as parts:
            run.execute(made, Workspace(Path(parts)), on_progress)
        return JudgeResult.own(made)
    replaces = is_result if overwrite else never
    check_target(folder, replaces)
    with (
        open_workspace(folder, run.plan, resume=resume, overwrite=overwrite) as workspace,
        _told_of_images(workspace, len(image_set), resume=resume),
        staged_folder(folder, replaces=replaces) as staging,
    ):
        run.execute(staging, workspace, on_progress)
    return JudgeResult(folder)


@contextmanager
def _told_of_images(workspace: Workspace, num_images: int, *, resume: bool) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        if done := len(workspace.find_done()):
            again = "the same call" if resume else "the same call with resume"
            error.add_note(f"{done} of {num_images} images are kept: {again} resumes it")
        raise


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
        if config.torch_dtype in HALF_PRECISIONS:
            raise UsageError(
                f"maps cannot be judged in {config.dtype}, which rounds away small differences: "
                "use float32"
            )
        self._removals = [find_removal(name) for name in config.removals]
        self._target = choose_target(vit, target, images.preprocessing, has_references=True)
        vit = self._target.vit
        self._methods, self._left_out = _choose_methods(vit, config.maps)
        check_maps(self._methods, self._target, has_references=True)
        # A model that averages its tokens has no row to choose.
        self._layer = (
            vit.select_layer(config.layer) if vit.blocks or config.layer is not None else None
        )
        self._vit, self._images, self._compared = vit, images, compared
        self._config = replace(config, batch_size=1)
        self._run = ModelRun(vit, images, self._config)
        self._given = given

    @property
    def plan(self) -> Plan:
        """All that the numbers depend on."""
        config = self._config
        names = ("removals", "layer", "sanity", "gallery", "seed", "dtype", "masks")
        plan = {
            "kind": "judgement",
            "images": _digest(self._images),
            "target": self._target.told,
            "maps": [method.name for method in self._methods],
            **{name: getattr(config, name) for name in names},
            "references": _digest(self._compared),
            "weights_hash": self._run.weights_hash,
            "behaviour_hash": self._run.behaviour.digest,
            "preprocessing": asdict(self._images.preprocessing),
            "device": self._run.device.type,
            "versions": list_versions(config.maps or ()),
        }
        found: dict[str, Any] = json.loads(json.dumps(plan))
        return found

    def execute(self, folder: Path, workspace: Workspace, on_progress: OnProgress | None) -> None:
        """Judge the images that are not done, and write the result."""
        done = workspace.find_done()
        todo = [index for index in range(len(self._images)) if index not in done]
        with self._run.placed():
            references = self._read_references()
            run = ModelRun(self._vit, self._images.select(todo), self._config)

            def advance(number: int, _: int) -> None:
                if on_progress is not None:
                    on_progress(len(done) + number, len(self._images))

            for batch in run.iter_batches(advance):
                given = self._make_input(batch.pixels, references)
                with (
                    run.plain_errors(batch),
                    workspace.new_part(todo[batch.indices[0]]) as part,
                ):
                    self._judge(part, todo[batch.indices[0]], batch.ids[0], given)
        self._run.failures[:] = run.failures
        self._run.check_some_read()
        self._finish(folder, workspace, references)

    def _make_input(self, pixels: Pixels, references: References) -> MapInput:
        return MapInput(
            vit=self._vit,
            pixels=pixels,
            choice=self._target.choose,
            references=references,
            layer=self._layer,
            seed=self._config.seed,
        )

    def _read_references(self) -> References:
        run = ModelRun(self._vit, self._compared, replace(self._config, batch_size="auto"))
        references = make_references(self._vit, (batch.pixels for batch in run.iter_batches(None)))
        if references.num_images < 2:
            raise UsageError(
                "maps are judged against other images: expected at least two, or references"
            )
        return references

    def _judge(self, part: Path, number: int, image_id: str, given: MapInput) -> None:
        shares = self._read_mask(number, given.layout.grid)
        made, seconds = {}, {}
        for method in self._methods:
            start = perf_counter()
            made[method.name] = method.compute(given)
            seconds[method.name] = perf_counter() - start
        judged = [judge_images(given, made, removal) for removal in self._removals]
        image = {
            "path": self._images.name_image(number),
            "image_id": image_id,
        }
        numbers = {name: {"seconds": value} for name, value in seconds.items()}
        places = slice(given.patches.start, given.patches.stop)
        for name, values in made.items() if self._images.masks else ():
            of_patches = values.values[0, places].double().cpu().numpy()
            numbers[name] |= _score_plausibility(of_patches, shares)
        if self._config.sanity:
            for name, found in _check_sanity(given, self._methods).items():
                numbers[name] |= found
        rows = [{**image, "map": name, **values} for name, values in numbers.items()]
        scores = pa.Table.from_pylist([row | image for row in _list_scores(judged)])
        write_tables(part, scores, pa.Table.from_pylist(rows))
        if number < self._config.gallery:
            shown = self._read_shown(number)
            maps = {
                method.name: place_values(method, given, made[method.name])
                for method in self._methods
            }
            write_part_maps(part, ImageMaps(image=shown, maps=maps))

    def _read_shown(self, number: int) -> UInt8[np.ndarray, "height width 3"]:
        preprocessing = self._images.preprocessing
        image = decode_for_model(read_image(self._images.addresses[number]), preprocessing)
        return np.asarray(prepare_image(image, preprocessing)[0])

    def _read_mask(self, index: int, grid: tuple[int, int]) -> np.ndarray | None:
        # Share of each patch that lies on the object; None without a mask.
        path = self._images.masks[index] if self._images.masks else None
        if path is None:
            return None
        preprocessing = self._images.preprocessing
        image = decode_for_model(read_image(self._images.addresses[index]), preprocessing)
        segments = crop_mask(decode_mask(read_image(path)), image, preprocessing)
        (rows, columns), (height, width) = grid, segments.shape
        cells = (segments != 0).reshape(rows, height // rows, columns, width // columns)
        return np.asarray(cells.mean(axis=(1, 3)).ravel())

    def _finish(self, folder: Path, workspace: Workspace, references: References) -> None:
        parts = [workspace.part(number) for number in sorted(workspace.find_done())]
        concat_tables(folder, parts)
        titles = {method.name: method.title for method in self._methods}
        found = summarize_tables(folder, titles)
        model = self._run.describe_model()
        source = "given" if self._given else "the judged images themselves"
        summary = JudgementSummary(
            model=replace(model, notes=(*model.notes, *self._left_out)),
            settings=Settings(),
            preprocessing=describe_preprocessing(self._vit, self._images.preprocessing),
            data=DataSummary(
                num_images=found.num_images,
                num_failed=len(self._run.failures),
                num_repeated=self._images.num_repeated,
                notes=tuple(self._images.notes),
            ),
            layer=self._layer,
            target=self._target.told,
            reference=JudgeReference(source=source, num_images=references.num_images),
            verdict=found.verdict,
            maps={
                method.name: JudgedMap(
                    title=method.title,
                    signed=method.signed,
                    targeted=method.targeted,
                    source=method.source,
                    seconds=found.seconds[method.name],
                )
                for method in self._methods
            },
            removals=found.removals,
            ceiling=found.ceiling,
            plausibility=found.plausibility,
            sanity=found.sanity,
            images=keep_images(folder, parts),
        )
        write_result(
            folder,
            summary,
            failures=self._run.failures,
            provenance={**self._run.make_provenance(), "plan": self.plan},
        )


def _digest(images: ImageSet) -> str:
    held = (address for address in images.addresses if isinstance(address, HeldImage))
    return digest_files(images, {address: address.version for address in held})


def _choose_methods(
    vit: ViTAdapter, asked: Sequence[str] | None
) -> tuple[list[MapMethod], list[str]]:
    # What was not asked for by name and does not exist for the model is left out, with a note.
    if isinstance(asked, str):
        raise UsageError(f"maps was given as {asked!r}: expected names, such as [{asked!r}]")
    if {"random", "oracle"} & set(asked or ()):
        raise UsageError("random orders and the oracle are always judged: leave them out of maps")
    names = dict.fromkeys([*ALWAYS, *(DEFAULT_MAPS if asked is None else asked)])
    methods, left_out = [], []
    for method in map(find_method, names):
        try:
            if method.check is not None:
                method.check(vit)
        except UnsupportedModelError as error:
            if method.name in (asked or ()):
                raise
            left_out.append(f"{method.name} is left out: {error}")
        else:
            methods.append(method)
    return methods, left_out


def _list_scores(judged: Sequence[Judgement]) -> Iterator[dict[str, Any]]:
    for one in judged:
        others = [other.deltas[0] for other in judged if other is not one]
        ranks = [compute_rank(one.deltas[0], deltas) for deltas in others]
        ceiling = float(np.mean(ranks)) if ranks else float("nan")
        for place, name in enumerate(one.maps):
            scores = zip(SCORES, one.scores[0, place].tolist(), strict=True)
            yield {
                "removal": one.removal,
                "map": name,
                "ceiling": ceiling,
                **dict(scores),
                "deletion_curve": one.deletion[0, place].tolist(),
                "insertion_curve": one.insertion[0, place].tolist(),
            }


def _score_plausibility(values: np.ndarray, shares: np.ndarray | None) -> dict[str, float]:
    if shares is None:
        return dict.fromkeys(PLAUSIBILITY, float("nan"))
    return {
        "pointing": compute_pointing(values, shares),
        "mass_in_mask": compute_mass_in_mask(values, shares),
        "average_precision": compute_average_precision(values, shares),
        "mask_area": float(shares.mean()),
    }


def _check_sanity(given: MapInput, methods: Sequence[MapMethod]) -> dict[str, dict[str, float]]:
    found = measure_sanity(given, methods, explain_other)
    moved = measure_sensitivity(given, methods)
    return {
        method.name: {
            "randomised_last": float(found.randomised[0, place, 0]),
            "randomised_all": float(found.randomised[0, place, -1]),
            "other_target": float(found.other_target[0, place]),
            "sensitivity": float(moved[0, place]),
        }
        for place, method in enumerate(methods)
    }
