"""One model explaining images, one by one: maps, numbers and a verdict of each."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from vitscope.config import RunConfig
from vitscope.errors import ImageReadError, MemoryShortageError, UsageError
from vitscope.files.json_files import write_json
from vitscope.files.workspace import Plan, Workspace
from vitscope.images.addresses import read_image
from vitscope.images.covariates import NARROW, measure_range, note_narrow
from vitscope.images.decoding import decode_for_model, image_id, prepare_image
from vitscope.images.image_set import ImageBatch, ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing
from vitscope.ledger import Ledger, balance_tolerance, check_balance, make_ledger
from vitscope.maps.chosen_target import TargetLike
from vitscope.maps.method import MapInput
from vitscope.maps.references import References, make_references
from vitscope.maps.removal import reads_patches_alone
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import check_memory
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import (
    ImageExplanation,
    compute_centred_map,
    measure_image,
    write_image,
)
from vitscope.results.image_maps import (
    ImageMap,
    keep_parts,
    place_map,
    place_row_maps,
    with_unplaced,
    write_kept,
)
from vitscope.results.judge_result import JudgeResult
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
from vitscope.runs.digests import digest_sets
from vitscope.runs.model_run import ModelRun, OnProgress, shuffle_images
from vitscope.runs.references import (
    Wanted,
    advise,
    choose_explained,
    find_reference,
    read_reference,
)
from vitscope.trace import ClsTrace

_NARROW = "narrow.json"
"""File of a part whose image uses little of the range from black to white."""
_REFERENCE_BATCH = 8
"""Reference images of one pass."""

MAX_ASPECT = 8
"""Largest aspect ratio of an image that is explained whole: the cost of attention grows with its
square."""


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


class ExplainRun(ModelRun[RunConfig]):
    """One model explaining images, into one folder."""

    def __init__(
        self,
        vit: ViTAdapter,
        images: ImageSet,
        config: RunConfig,
        *,
        layer: int | None,
        maps: Sequence[str] | None,
        target: TargetLike | None,
        references: ImageSet | None,
        score: bool,
        heads: bool,
        judged: JudgeResult | None,
        reference: AuditResult | None,
        out: Path | None,
    ) -> None:
        """Prepare the run; the model is used only if a setting must be chosen."""
        config.check_of_maps()
        self._layer = vit.select_layer(layer)
        super().__init__(vit, images, config)
        wanted = Wanted(
            weights_hash=self.weights_hash,
            behaviour=self.behaviour,
            layer=self._layer,
            preprocessing=images.preprocessing,
        )
        has_references = references is not None
        chosen = choose_explained(
            judged, vit, wanted, target, has_references=has_references, are_named=maps is not None
        )
        self._judgement = chosen.judgement
        self._maps = ChosenMaps(
            chosen.maps if maps is None else maps,
            self.config.torch_dtype,
            chosen.target,
            has_references=has_references,
            scored=score or judged is not None,
        )
        self._maps.check_used(target=target, references=references)
        self._check_scored(references)
        self._others = references
        self._keeps_heads = heads
        self._compared: tuple[Preprocessing, References] | None = None
        self._tolerance = balance_tolerance(self.config.torch_dtype, self.device)
        found, self._unused = (
            find_reference(wanted, out)
            if reference is None
            else (read_reference(reference, wanted), [])
        )
        self._reference = None if found is None else found.about
        self._means = None if found is None else found.means

    def _check_scored(self, references: ImageSet | None) -> None:
        # Before the passes.
        if self._maps.scoring is None or references is not None:
            return
        if reads_patches_alone(self.vit.make_layout(*self.images.preprocessing.size)):
            raise UsageError(
                f"the output of {self.vit.info.id} is read from the patches alone, so that they "
                "cannot all be dropped to score maps: give references"
            )

    @cached_property
    def plan(self) -> Plan:
        """All that the numbers depend on."""
        return self.make_plan(
            "explanation",
            self._maps.names,
            **digest_sets(images=self.images, references=self._others),
            maps=self._maps.names,
            **self._maps.describe_target(),
            scored=self._maps.scoring is not None,
            heads=self._keeps_heads,
            layer=self._layer,
            size=self.config.size,
            reference=None if self._reference is None else asdict(self._reference),
            judgement=None if self._judgement is None else asdict(self._judgement),
        )

    def execute(self, folder: Path, workspace: Workspace, on_progress: OnProgress | None) -> None:
        """Explain the images that are not done, and write the result."""
        done = workspace.find_done()
        with self.placed(), self.placed(self._maps.target.vit):
            for index in sorted(set(range(len(self.images))) - done):
                try:
                    batch, image, preprocessing = self._see(index)
                except ImageReadError as error:
                    self.failures.append((self.images.name_image(index), str(error)))
                else:
                    explained = self._explain(batch, image, preprocessing)
                    with workspace.new_part(index) as part:
                        write_kept(part, write_image(part, 0, explained))
                        if measure_range(image) < NARROW:
                            write_json(part / _NARROW, True)
                if on_progress is not None:
                    on_progress(index + 1, len(self.images))
        self.check_some_read()
        parts = [workspace.part(number) for number in sorted(workspace.find_done())]
        entries = keep_parts(ExplainedImage, folder, parts)
        narrow = [
            entry.path
            for entry, part in zip(entries, parts, strict=True)
            if (part / _NARROW).exists()
        ]
        summary = ExplanationSummary(
            model=self.describe_model(),
            settings=Settings(),
            preprocessing=self.describe_preprocessing(),
            data=DataSummary(
                num_images=len(entries),
                num_failed=len(self.failures),
                notes=(*self.images.notes, *note_narrow(narrow, len(entries))),
            ),
            ledger=LedgerSummary(
                max_balance_error=max(entry.numbers.balance_error for entry in entries),
                tolerance=self._tolerance,
            ),
            layer=self._layer,
            reference=self._reference,
            references_not_used=tuple(self._unused),
            judgement=self._judgement,
            scoring=self._maps.scoring,
            images=entries,
        )
        told = None if self._reference is None else asdict(self._reference)
        num_compared = 0 if self._compared is None else self._compared[1].num_images
        write_result(
            folder,
            summary,
            failures=self.failures,
            provenance=self.make_provenance(self._maps.names)
            | {"reference": told, "num_map_references": num_compared}
            | {"plan": self.plan, "run": workspace.run_id}
            | self._maps.describe_target(),
        )

    def _see(
        self, index: int
    ) -> tuple[ImageBatch, UInt8[np.ndarray, "height width 3"], Preprocessing]:
        try:
            data = read_image(self.images.addresses[index])
            image = decode_for_model(data, self.images.preprocessing)
            preprocessing = self._frame(image.size)
            check_memory(self.vit, preprocessing.size, self.device, decoded=1)
            shown, pixels = prepare_image(image, preprocessing)
        except (MemoryError, MemoryShortageError):
            raise ImageReadError("too large: not enough memory to read it") from None
        placed = pixels.unsqueeze(0).to(self.device)
        return ImageBatch([index], [image_id(data)], placed), np.asarray(shown), preprocessing

    def _frame(self, size: tuple[int, int]) -> Preprocessing:
        # Means and judgements require the same preprocessing.
        compared = self._reference is not None or self._judgement is not None
        height, width = self.images.preprocessing.size
        exact = height != width or isinstance(self.config.size, tuple)
        if compared or exact or self.images.preprocessing.pipeline == "given":
            return self.images.preprocessing
        whole = fit_whole(size, self.images.preprocessing, self.vit.info.patch_size)
        try:
            self.vit.make_layout(*whole.size)
        except UsageError:  # the model accepts only its own size
            return self.images.preprocessing
        return whole

    def _explain(
        self,
        batch: ImageBatch,
        image: UInt8[np.ndarray, "height width 3"],
        preprocessing: Preprocessing,
    ) -> ImageExplanation:
        name = self.images.name_image(batch.indices[0])
        with self.plain_errors(batch):
            given = self._maps.target.make_input(
                batch.pixels,
                self._compare(preprocessing),
                self._maps.methods,
                layer=self._layer,
                seed=self.config.seed,
            )
            ledger, row = self._map_row(given)
            others = self._maps.compute(given)
        if missing := [one.name for one in self._maps.methods if one.name not in others]:
            raise UsageError(
                f"the map {missing[0]} is undefined for {name}, which does not differ from its "
                "references: give others, or leave one of the two out"
            )
        numbers = measure_image(ledger, self._means)
        for of, shares in (("share", numbers.share), ("centred_share", numbers.centred_share)):
            if of in row:
                outside = {term: share for term, share in shares.items() if term != "patches"}
                row[of] = with_unplaced(row[of], outside)
        whole = preprocessing is not self.images.preprocessing
        explained = ImageExplanation(
            path=name,
            image_id=batch.ids[0],
            framing="whole" if whole else "cropped",
            image=image,
            maps=self._maps.arrange(row | others),
            heads_by_layer=self._map_heads(batch) if self._keeps_heads else None,
            numbers=numbers,
            verdict=qualify(self._judge(numbers), self.vit.info.own_output),
        )
        with self.plain_errors(batch):
            gap, skill = self._maps.score(given, explained.shown)
        return replace(explained, gap=gap, skill=skill)

    def _judge(self, numbers: ImageNumbers) -> ImageVerdict:
        about = self._reference
        if about is not None:
            return judge_image(numbers.centred_share, about.num_images, about.images)
        remedy = advise(self.vit.info, self._layer, self.vit.last_layer, self.config)
        return judge_alone(numbers.share_without_bias, remedy)

    @torch.no_grad()
    def _map_row(self, given: MapInput) -> tuple[Ledger, dict[str, ImageMap]]:
        trace = given.own.row if self._maps.needs_own_pass else self._trace(given.pixels)
        assert trace is not None
        ledger = make_ledger(trace)
        check_balance(ledger, self._tolerance)
        maps = place_row_maps(make_row_maps(trace, ledger))
        return ledger, maps | self._map_centred(trace, ledger)

    def _map_heads(self, batch: ImageBatch) -> Float[np.ndarray, "layer head row column"]:
        # Attention on the patches in every layer, by a pass of its own.
        found: list[Tensor] = []

        def take(trace: ClsTrace) -> None:
            heads = trace.logits[0].float().softmax(dim=-1)[:, trace.layout.groups["patches"]]
            found.append(heads.reshape(-1, *trace.layout.grid).cpu())

        with self.plain_errors(batch):
            self.vit.trace(batch.pixels, sorted(self.vit.blocks), take, verified=False)
        return torch.stack(found).numpy()

    def _trace(self, pixels: Pixels) -> ClsTrace:
        found: list[ClsTrace] = []
        self.vit.trace(pixels, [self._layer], found.append)
        return found[0]

    def _map_centred(self, trace: ClsTrace, ledger: Ledger) -> dict[str, ImageMap]:
        judged = self._judgement is not None and self._judgement.drawn == "share"
        if self._means is None or judged:  # figures would show it in place of the judged map
            return {}
        found = compute_centred_map(trace, ledger, self._means)
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
            images = shuffle_images(images, self.config.seed)
            vit = self._maps.target.vit
            self._compared = preprocessing, make_references(vit, self._read(images))
        return self._compared[1]

    def _read(self, images: ImageSet) -> Iterator[Pixels]:
        reasons = []
        for batch in iter_batches(images, batch_size=_REFERENCE_BATCH):
            reasons += [f"{images.name_image(f.index)}: {f.reason}" for f in batch.failures]
            if batch.ids:
                yield batch.pixels.to(self.device)
        if len(reasons) == len(images):
            raise ImageReadError(f"none of the references could be read; the first, {reasons[0]}")
