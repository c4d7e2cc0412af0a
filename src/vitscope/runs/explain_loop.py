"""Pictures explained one by one, each in its own shape: maps, numbers and a verdict."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from vitscope.config import RunConfig
from vitscope.decomposition import choose_tolerance
from vitscope.errors import ImageReadError, UsageError
from vitscope.files.storage import is_result, never, printable_path, scratch_folder, staged_folder
from vitscope.ledger import Ledger, check_balance, make_ledger
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.registry import open_model
from vitscope.pictures.addresses import (
    PictureAddress,
    Source,
    printable_address,
    read_picture,
)
from vitscope.pictures.decoding import decode_picture, image_id, normalize_pixels, resize_and_crop
from vitscope.pictures.images import ImageSet
from vitscope.pictures.level_range import NARROW, measure_range, note_narrow
from vitscope.pictures.preprocessing import Preprocessing
from vitscope.pictures.sources import FoundPictures, find_images
from vitscope.results.audit_result import AuditResult
from vitscope.results.explanation import (
    Explanation,
    Framing,
    PictureExplanation,
    finish_explanation,
    measure_picture,
    write_picture,
)
from vitscope.results.verdict import MIN_IMAGES, judge_picture
from vitscope.runs.model_run import (
    ModelRun,
    OnProgress,
    PlacedBatch,
    choose_preprocessing,
    describe_model,
)
from vitscope.token_maps import TokenMaps, make_token_maps
from vitscope.trace import ClsTrace

MAX_ASPECT = 8
"""Longest side, as a multiple of the shorter, of a picture that is explained whole: what attention
costs grows with its square."""


def explain(
    vit: ViTAdapter | nn.Module | str,
    images: Source | Sequence[Source],
    config: RunConfig | None = None,
    *,
    layer: int | None = None,
    reference: AuditResult | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> Explanation:
    """Show for single pictures where their [CLS] output came from, and what its map leaves out.

    A picture keeps its shape: its shorter side gets the input size, the longer one is scaled alike
    and rounded to whole patches. Where the model takes one size only, or the size asked for is not
    square, pictures are cropped to it, and their `framing` says so.

    Args:
        vit: The model: an adapter, a module, or an id that `load_model` takes. It runs on the
            configured device in the configured precision, and is left as it was.
        images: Folders, picture files, text files of paths.
        config: Settings; the defaults if None. Pictures run one by one, whatever the batch size.
        layer: Index of the block, from 0; the last one if None.
        reference: An audit of the same weights whose preprocessing is that of the model and
            settings here; its pictures are cropped all the same, and a verdict tells where its
            picture is not. It is then on what differs from the means over the audit's pictures;
            otherwise on r − bias.
        out: Folder to write the result into; a temporary one if None.
        overwrite: Whether an earlier result in `out` is replaced.
        on_progress: Called with (pictures done, pictures in all) after every picture.

    Returns:
        The result.

    Raises:
        UsageError: If settings, pictures, reference or folder do not fit.
        ImageReadError: If no picture could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the disk does not take the result.

    Source:
        Lappe & Giese (NeurIPS 2025), Fig. 4.
    """
    vit = open_model(vit)
    config = config or RunConfig()
    run = ExplainRun(vit, find_images(images), config, layer, reference)
    if out is None:
        with scratch_folder() as folder:
            run.execute(folder, on_progress)
        return Explanation.own(folder)
    with staged_folder(Path(out), replaces=is_result if overwrite else never) as staging:
        run.execute(staging, on_progress)
    return Explanation(Path(out))


@dataclass(frozen=True, eq=False)
class Reference:
    """What a picture's terms are centred on.

    Attributes:
        means: Mean of each term.
        num_images: Pictures behind them.
        model_id: Id of the model in the audit they are of.
    """

    means: Mapping[str, Float[Tensor, " dim"]]
    num_images: int
    model_id: str


def read_reference(
    audited: AuditResult, weights_hash: str, layer: int, preprocessing: Preprocessing
) -> Reference:
    """The means of an audit, if it is one of the same model looking at pictures alike.

    Args:
        audited: The audit.
        weights_hash: Digest of the weights of the model that explains.
        layer: Layer that is explained.
        preprocessing: How its pictures are prepared.

    Returns:
        The means.

    Raises:
        UsageError: If weights, preprocessing or groups differ, the layer was not audited, or there
            are too few pictures for means.
    """
    manifest, folder = audited.manifest, printable_path(audited.folder)
    if manifest.weights_hash != weights_hash:
        raise UsageError(
            f"the reference {folder} is of {manifest.model['id']} with other weights: give an "
            "audit of the model that explains"
        )
    if layer not in manifest.layers:
        raise UsageError(
            f"the reference {folder} holds layers {list(manifest.layers)}, not {layer}: audit it "
            f"with --layers {layer}"
        )
    for name, value in json.loads(json.dumps(asdict(preprocessing))).items():
        found = manifest.preprocessing.get(name)
        if found != value:
            raise UsageError(
                f"the reference {folder} was audited with {name} {found}, the pictures are "
                f"prepared with {value}: use the same"
            )
    sums = audited.read_sums()[layer]
    if sums.num_images < MIN_IMAGES:
        raise UsageError(
            f"the reference {folder} holds {sums.num_images} pictures, whose means say little: "
            f"audit {MIN_IMAGES} or more"
        )
    if manifest.has_skip and "cls" not in manifest.groups:
        raise UsageError(
            f"the reference {folder} counts [CLS]'s attention to itself among other tokens: audit "
            "with --cls-term own"
        )
    terms = [*manifest.groups, *(["skip"] if manifest.has_skip else [])]
    means = {name: sums.compute_mean(f"term/{name}") for name in terms}
    return Reference(means, sums.num_images, manifest.model["id"])


def fit_whole(
    size: tuple[int, int], preprocessing: Preprocessing, patch_size: tuple[int, int]
) -> Preprocessing:
    """Preprocessing that keeps a picture's shape, to the nearest whole patch.

    Args:
        size: (width, height) of the picture in pixels.
        preprocessing: The model's own, for a square input.
        patch_size: Patch (height, width) in pixels.

    Returns:
        The same with an input whose shorter side is the square's.

    Raises:
        ImageReadError: If the picture is longer than `MAX_ASPECT` times its shorter side.
    """
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise ImageReadError(
            f"{width} x {height} px is more than {MAX_ASPECT} times as long as short: crop it to "
            "the part that is to be explained"
        )
    shorter = min(preprocessing.size)
    rows, columns = (
        max(1, round(shorter * side / min(size) / patch))
        for side, patch in zip((height, width), patch_size, strict=True)
    )
    whole = (rows * patch_size[0], columns * patch_size[1])
    return replace(preprocessing, size=whole, resize="cover", crop_fraction=1.0)


@dataclass(frozen=True, eq=False)
class _Seen:
    path: str
    image_id: str
    framing: Framing
    framed_as_audited: bool
    picture: UInt8[np.ndarray, "height width 3"]
    pixels: Pixels


class ExplainRun:
    """One model explaining pictures, into one folder."""

    def __init__(
        self,
        vit: ViTAdapter,
        addresses: tuple[PictureAddress, ...],
        config: RunConfig,
        layer: int | None,
        reference: AuditResult | None,
    ) -> None:
        """Prepare the run; the model is not touched yet.

        Args:
            vit: The model.
            addresses: Where the pictures lie.
            config: Settings.
            layer: Index of the block; the last one if None.
            reference: An audit whose means the verdicts are against.

        Raises:
            UsageError: If settings or reference do not fit.
        """
        for name in ("renormalize", "cls_term"):
            if getattr(config, name) != getattr(RunConfig(), name):
                raise UsageError(
                    f"{name} is set, but maps show every token's attention weight as it is: leave "
                    "it out"
                )
        self._vit = vit
        self._addresses = addresses
        self._layer = vit.last_layer if layer is None else layer
        vit.select_layers([self._layer])
        self._preprocessing = choose_preprocessing(vit, config)
        notes = addresses.notes if isinstance(addresses, FoundPictures) else ()
        images = ImageSet(addresses, self._preprocessing, notes=notes)
        self._run = ModelRun(vit, images, config)
        self._tolerance = choose_tolerance(self._run.config.torch_dtype, self._run.device)
        self._reference = (
            None
            if reference is None
            else read_reference(reference, self._run.weights_hash, self._layer, self._preprocessing)
        )

    def execute(self, folder: Path, on_progress: OnProgress | None) -> None:
        """Explain all pictures and write the result.

        Args:
            folder: Folder to write into.
            on_progress: Called with (pictures done, pictures in all) after every picture.

        Raises:
            ImageReadError: If no picture could be read.
            ImbalanceError: If a ledger does not balance.
            NonFiniteError: If an activation is not finite.
        """
        entries: list[dict[str, Any]] = []
        num_narrow = 0
        with self._run.placed():
            for done, address in enumerate(self._addresses, start=1):
                try:
                    seen = self._see(address)
                except ImageReadError as error:
                    self._run.failures.append((printable_address(address), str(error)))
                else:
                    num_narrow += measure_range(seen.picture) < NARROW
                    entries.append(write_picture(folder, len(entries), self._explain(seen)))
                if on_progress is not None:
                    on_progress(done, len(self._addresses))
        self._run.check_some_read()
        finish_explanation(
            folder,
            self._describe(max(entry["balance_error"] for entry in entries)),
            entries,
            failures=self._run.failures,
            provenance=self._run.make_provenance(),
            notes=note_narrow(num_narrow, len(entries)),
        )

    def _see(self, address: PictureAddress) -> _Seen:
        try:
            data = read_picture(address)
            image = decode_picture(data, self._preprocessing)
            preprocessing, framing = self._frame(image.size)
            shown = resize_and_crop(image, preprocessing)
            framed_as_audited = self._is_framed_as_audited(image, shown)
            pixels = normalize_pixels(shown, preprocessing).unsqueeze(0)
        except MemoryError:
            raise ImageReadError("too large: not enough memory to read it") from None
        return _Seen(
            path=printable_address(address),
            image_id=image_id(data),
            framing=framing,
            framed_as_audited=framed_as_audited,
            picture=np.asarray(shown),
            pixels=pixels.to(self._run.device),
        )

    def _frame(self, size: tuple[int, int]) -> tuple[Preprocessing, Framing]:
        height, width = self._preprocessing.size
        if height != width:
            return self._preprocessing, "cropped"
        whole = fit_whole(size, self._preprocessing, self._vit.info.patch_size)
        try:
            self._vit.make_layout(*whole.size)
        except UsageError:  # It takes its own size only.
            return self._preprocessing, "cropped"
        return whole, "whole"

    def _is_framed_as_audited(self, image: Image.Image, shown: Image.Image) -> bool:
        # Another size may be the same part of a picture, and the same size another part.
        if shown.size[::-1] != self._preprocessing.size:
            return False
        return shown.tobytes() == resize_and_crop(image, self._preprocessing).tobytes()

    def _explain(self, seen: _Seen) -> PictureExplanation:
        batch = PlacedBatch([0], [seen.image_id], [seen.path], seen.pixels)
        with self._run.plain_errors(batch):
            ledger, maps = self._trace(seen.pixels)
        reference = self._reference
        numbers, bill = measure_picture(ledger, None if reference is None else reference.means)
        attention = maps.on_grid(maps.attention)[0]
        return PictureExplanation(
            path=seen.path,
            image_id=seen.image_id,
            framing=seen.framing,
            picture=seen.picture,
            attention=attention.mean(dim=0).numpy(),
            head_attention=attention.numpy(),
            contribution_norm=maps.on_grid(maps.contribution_norm)[0].numpy(),
            share=maps.on_grid(maps.share)[0].numpy(),
            head_share=maps.on_grid(maps.head_share)[0].numpy(),
            numbers=numbers,
            verdict=judge_picture(
                bill,
                None if reference is None else reference.num_images,
                cropped_to=None if seen.framed_as_audited else self._preprocessing.size,
            ),
        )

    def _trace(self, pixels: Pixels) -> tuple[Ledger, TokenMaps]:
        found: list[tuple[Ledger, TokenMaps]] = []

        def take(trace: ClsTrace) -> None:
            ledger = make_ledger(trace)
            check_balance(ledger, self._tolerance)
            found.append((ledger, make_token_maps(trace, ledger)))

        self._vit.trace(pixels, [self._layer], take)
        return found[0]

    def _describe(self, max_balance_error: float) -> dict[str, Any]:
        reference = self._reference
        return {
            "model": describe_model(self._vit, self._preprocessing.size, self._run.config.dtype),
            "layer": self._layer,
            "reference": None
            if reference is None
            else {"model_id": reference.model_id, "num_images": reference.num_images},
            "ledger": {"max_balance_error": max_balance_error, "tolerance": self._tolerance},
        }
