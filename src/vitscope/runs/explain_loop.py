"""Explanations of single images: maps, numbers and a verdict."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from torch import nn

from vitscope.adapters.registry import open_model
from vitscope.config import RunConfig, check_kind, combine
from vitscope.decomposition import choose_tolerance
from vitscope.errors import ImageReadError, MemoryShortageError, UsageError
from vitscope.files.printable import printable_path
from vitscope.files.storage import as_folder, is_result, never, scratch_folder, staged_folder
from vitscope.images.addresses import Images, read_image
from vitscope.images.covariates import NARROW, measure_range, note_narrow
from vitscope.images.decoding import decode_for_model, image_id, prepare_image
from vitscope.images.image_set import ImageBatch, ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.ledger import Ledger, check_balance, make_ledger
from vitscope.maps.chosen_target import TargetLike
from vitscope.maps.references import References, make_references
from vitscope.maps.token_maps import DEFAULT_MAPS
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import check_memory
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import (
    Explanation,
    ImageExplanation,
    compute_centred_map,
    measure_image,
    write_image,
)
from vitscope.results.image_maps import ImageMap, place_map, place_row_maps, with_unplaced
from vitscope.results.saved_result import write_result
from vitscope.results.schema import (
    DataSummary,
    ExplainedImage,
    ExplanationSummary,
    LedgerSummary,
    Settings,
)
from vitscope.results.schema_numbers import ImageNumbers
from vitscope.results.verdict import ImageVerdict, judge_alone, judge_image, qualify
from vitscope.results.vocabulary import ROW_MAPS
from vitscope.row_maps import make_row_maps
from vitscope.runs.chosen_maps import ChosenMaps
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    describe_preprocessing,
    make_image_set,
    shuffle_images,
)
from vitscope.runs.references import Wanted, advise, find_reference, holds_audit, read_reference
from vitscope.trace import ClsTrace

_REFERENCE_BATCH = 8
"""Reference images of one pass."""

MAX_ASPECT = 8
"""Largest aspect ratio of an image that is explained whole: the cost of attention grows with its
square."""


def explain(
    vit: ViTAdapter | nn.Module | str,
    images: ImageSet | Images,
    config: RunConfig | None = None,
    *,
    preprocessed: bool = False,
    layer: int | None = None,
    maps: Sequence[str] = DEFAULT_MAPS,
    target: TargetLike | None = None,
    references: Images | None = None,
    reference: AuditResult | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
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
    patches. If the model accepts only one size, or the requested size is not square, images are
    cropped to it. `framing` says which.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` accepts. It runs on the
            configured device in the configured precision, and is left as it was.
        images: Folders, files, URLs, PIL images, arrays, tensors, datasets, or several of these
            (docs/data.md), or an `ImageSet`.
        config: Settings; the defaults if None. Images run one at a time, whatever the batch size.
        preprocessed: Whether the images are tensors that go to the model unchanged.
        layer: Index of the block whose attention row is explained, from 0; the last one if None.
        maps: Names of map methods (docs/recipes/maps.md).
        target: What maps that depend on it explain: "self", "cosine", "logit" (of the class that an
            image gets), "logit:CLASS" (by number or name), a second image ("image:PATH", a path, a
            PIL image, or a preprocessed tensor), a vector that the model's global feature is
            compared with, or a function of `vitscope.maps.targets`. "self" if there are references,
            else "cosine".
        references: Images that maps compare with, such as a few hundred like yours; each is
            prepared like the explained image.
        reference: An audit of the same weights and layer, with the same preprocessing; if None, one
            next to the result or shipped with vitscope.
        out: Folder for the result; a temporary one if None.
        overwrite: Whether an earlier result in `out` is replaced.
        on_progress: Called with (images done, total) after every image.
        **settings: Settings of `RunConfig` by name, in addition to `config` or instead of it.

    Returns:
        The result.

    Raises:
        UsageError: If settings, images, target, reference or folder do not fit.
        UnsupportedModelError: If a map or the logits that were asked for do not exist for the
            model.
        ImageReadError: If no image could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the result cannot be written.

    Source:
        Lappe & Giese (NeurIPS 2025), Fig. 4.
    """
    vit = open_model(vit)
    config = combine(RunConfig, config, settings)
    if reference is not None:
        check_kind("reference", reference, AuditResult, "an audit, as AuditResult.load(folder)")
    folder = as_folder(out)
    if folder is not None and holds_audit(folder):
        raise UsageError(
            f"{printable_path(folder)} holds an audit, which an explanation does not replace: "
            "choose another folder"
        )
    image_set = make_image_set(vit, images, config, preprocessed=preprocessed)
    others = None
    if references is not None:
        others = ImageSet.from_sources(
            references, image_set.preprocessing, preprocessed=preprocessed
        )
    run = ExplainRun(
        vit,
        image_set,
        config,
        layer=layer,
        maps=maps,
        target=target,
        references=others,
        reference=reference,
        out=folder,
    )
    if folder is None:
        with scratch_folder() as scratch:
            run.execute(scratch, on_progress)
        return Explanation.own(scratch)
    replaces = is_result if overwrite else never
    with staged_folder(folder, replaces=replaces, rescued=True) as staging:
        run.execute(staging, on_progress)
    return Explanation(folder)


def fit_whole(
    size: tuple[int, int], preprocessing: Preprocessing, patch_size: tuple[int, int]
) -> Preprocessing:
    """Preprocessing that keeps an image's shape up to whole patches."""
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise ImageReadError(
            f"{width} x {height} px has an aspect ratio above {MAX_ASPECT}: crop it to the part "
            "to explain"
        )
    shorter = min(preprocessing.size)
    rows, columns = (
        max(1, round(shorter * side / min(size) / patch))
        for side, patch in zip((height, width), patch_size, strict=True)
    )
    whole = (rows * patch_size[0], columns * patch_size[1])
    return replace(preprocessing, size=whole, resize="cover", crop_fraction=1.0)


class ExplainRun:
    """One model explaining images, into one folder."""

    def __init__(
        self,
        vit: ViTAdapter,
        images: ImageSet,
        config: RunConfig,
        *,
        layer: int | None,
        maps: Sequence[str],
        target: TargetLike | None,
        references: ImageSet | None,
        reference: AuditResult | None,
        out: Path | None,
    ) -> None:
        """Prepare the run; the model is not touched yet."""
        for name in ("renormalize", "cls_term"):
            if getattr(config, name) != getattr(RunConfig(), name):
                raise UsageError(
                    f"{name} is set, but maps show every token's attention weight as it is: leave "
                    "it out"
                )
        self._vit = vit
        self._images = images
        self._layer = vit.select_layer(layer)
        self._preprocessing = images.preprocessing
        self._run = ModelRun(vit, images, config, maps)
        self._maps = ChosenMaps(
            vit,
            maps,
            self._run.config.torch_dtype,
            target=target,
            preprocessing=self._preprocessing,
            has_references=references is not None,
        )
        self._maps.check_used(target=target, references=references)
        self._others = references
        self._compared: tuple[Preprocessing, References] | None = None
        self._tolerance = choose_tolerance(self._run.config.torch_dtype, self._run.device)
        wanted = Wanted(
            weights_hash=self._run.weights_hash,
            behaviour=self._run.behaviour,
            layer=self._layer,
            preprocessing=self._preprocessing,
        )
        self._unused: list[str] = []
        if reference is None:
            self._reference, self._unused = find_reference(wanted, out)
        else:
            self._reference = read_reference(reference, wanted)

    def execute(self, folder: Path, on_progress: OnProgress | None) -> None:
        """Explain all images and write the result."""
        entries: list[ExplainedImage] = []
        narrow: list[str] = []
        device, dtype = self._run.device, self._run.config.torch_dtype
        with self._run.placed(), self._maps.target.vit.placed(device, dtype):
            for index in range(len(self._images)):
                try:
                    batch, image, preprocessing = self._see(index)
                except ImageReadError as error:
                    self._run.failures.append((self._images.name_image(index), str(error)))
                else:
                    if measure_range(image) < NARROW:
                        narrow.append(self._images.name_image(index))
                    explained = self._explain(batch, image, preprocessing)
                    entries.append(write_image(folder, len(entries), explained))
                if on_progress is not None:
                    on_progress(index + 1, len(self._images))
        self._run.check_some_read()
        reference = None if self._reference is None else self._reference.about
        summary = ExplanationSummary(
            model=self._run.describe_model(),
            settings=Settings(),
            preprocessing=describe_preprocessing(self._vit, self._preprocessing),
            data=DataSummary(
                num_images=len(entries),
                num_failed=len(self._run.failures),
                notes=(*self._images.notes, *note_narrow(narrow, len(entries))),
            ),
            ledger=LedgerSummary(
                max_balance_error=max(entry.numbers.balance_error for entry in entries),
                tolerance=self._tolerance,
            ),
            layer=self._layer,
            reference=reference,
            references_not_used=tuple(self._unused),
            images=tuple(entries),
        )
        told = None if reference is None else asdict(reference)
        write_result(
            folder,
            summary,
            failures=self._run.failures,
            provenance=self._run.make_provenance()
            | {"reference": told, "num_map_references": self._count_compared()}
            | self._maps.describe_target(),
        )

    def _see(
        self, index: int
    ) -> tuple[ImageBatch, UInt8[np.ndarray, "height width 3"], Preprocessing]:
        try:
            data = read_image(self._images.addresses[index])
            image = decode_for_model(data, self._preprocessing)
            preprocessing = self._frame(image.size)
            check_memory(self._vit, preprocessing.size, self._run.device, decoded=1)
            shown, pixels = prepare_image(image, preprocessing)
        except (MemoryError, MemoryShortageError):
            raise ImageReadError("too large: not enough memory to read it") from None
        placed = pixels.unsqueeze(0).to(self._run.device)
        return ImageBatch([index], [image_id(data)], placed), np.asarray(shown), preprocessing

    def _frame(self, size: tuple[int, int]) -> Preprocessing:
        height, width = self._preprocessing.size
        # Means require the same preprocessing.
        given = self._preprocessing.pipeline == "given"
        if self._reference is not None or height != width or given:
            return self._preprocessing
        whole = fit_whole(size, self._preprocessing, self._vit.info.patch_size)
        try:
            self._vit.make_layout(*whole.size)
        except UsageError:  # the model accepts only its own size
            return self._preprocessing
        return whole

    def _explain(
        self,
        batch: ImageBatch,
        image: UInt8[np.ndarray, "height width 3"],
        preprocessing: Preprocessing,
    ) -> ImageExplanation:
        name = self._images.name_image(batch.indices[0])
        with self._run.plain_errors(batch):
            ledger, row = self._trace(batch.pixels)
            others = self._maps.compute(
                batch.pixels,
                self._compare(preprocessing),
                layer=self._layer,
                seed=self._run.config.seed,
            )
        if missing := [one.name for one in self._maps.methods if one.name not in others]:
            raise UsageError(
                f"the map {missing[0]} is undefined for {name}, which does not differ from its "
                "references: give others, or leave one of the two out"
            )
        means = None if self._reference is None else self._reference.means
        numbers = measure_image(ledger, means)
        for of, shares in (("share", numbers.share), ("centred_share", numbers.centred_share)):
            if of in row:
                outside = {term: share for term, share in shares.items() if term != "patches"}
                row[of] = with_unplaced(row[of], outside)
        whole = preprocessing is not self._preprocessing
        return ImageExplanation(
            path=name,
            image_id=batch.ids[0],
            framing="whole" if whole else "cropped",
            image=image,
            maps=self._maps.arrange(row | others),
            numbers=numbers,
            verdict=qualify(self._judge(numbers), self._vit.info.own_output),
        )

    def _judge(self, numbers: ImageNumbers) -> ImageVerdict:
        reference = self._reference
        if reference is not None:
            return judge_image(
                numbers.centred_share, reference.about.num_images, reference.about.images
            )
        run, vit = self._run, self._vit
        remedy = advise(vit.info, self._layer, vit.last_layer, run.config)
        return judge_alone(numbers.share_without_bias, remedy)

    def _trace(self, pixels: Pixels) -> tuple[Ledger, dict[str, ImageMap]]:
        found: list[tuple[Ledger, dict[str, ImageMap]]] = []

        def take(trace: ClsTrace) -> None:
            ledger = make_ledger(trace)
            check_balance(ledger, self._tolerance)
            maps = place_row_maps(make_row_maps(trace, ledger))
            found.append((ledger, maps | self._map_centred(trace, ledger)))

        self._vit.trace(pixels, [self._layer], take)
        return found[0]

    def _map_centred(self, trace: ClsTrace, ledger: Ledger) -> dict[str, ImageMap]:
        if self._reference is None:
            return {}
        found = compute_centred_map(trace, ledger, self._reference.means)
        if found is None:
            return {}
        heads = found[0]
        kind = ROW_MAPS["centred_share"]
        return {"centred_share": place_map(kind, trace.layout, heads.sum(dim=0), heads=heads)}

    def _compare(self, preprocessing: Preprocessing) -> References | None:
        # Images of one size come together more often than not.
        if self._others is None:
            return None
        if self._compared is None or self._compared[0] != preprocessing:
            images = replace(self._others, preprocessing=preprocessing, described=False)
            images = shuffle_images(images, self._run.config.seed)
            vit = self._maps.target.vit
            self._compared = preprocessing, make_references(vit, self._read(images))
        return self._compared[1]

    def _count_compared(self) -> int:
        return 0 if self._compared is None else self._compared[1].num_images

    def _read(self, images: ImageSet) -> Iterator[Pixels]:
        reasons = []
        for batch in iter_batches(images, batch_size=_REFERENCE_BATCH):
            reasons += [f"{images.name_image(f.index)}: {f.reason}" for f in batch.failures]
            if batch.ids:
                yield batch.pixels.to(self._run.device)
        if len(reasons) == len(images):
            raise ImageReadError(f"none of the references could be read; the first, {reasons[0]}")
