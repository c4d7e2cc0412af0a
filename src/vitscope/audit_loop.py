"""The one loop: pictures through a model, rows into sums, sums into a result."""

import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from vitscope.config import AuditConfig, parse_layers
from vitscope.decomposition import LayerRows, choose_tolerance, decompose_layers
from vitscope.errors import ImageReadError, NonFiniteError, UsageError, VitscopeError
from vitscope.images import ImageBatch, ImageSet, iter_batches
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import block_of
from vitscope.models.base import Pixels, ViTAdapter, hash_weights
from vitscope.records import RecordWriter
from vitscope.result import AuditResult, Manifest, finish_result
from vitscope.storage import is_result, never, printable_path, scratch_folder, staged_folder

OnProgress = Callable[[int, int], None]

_LIBRARIES = (
    "vitscope",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open-clip-torch",
    "numpy",
)


def audit(
    vit: ViTAdapter,
    images: ImageSet | str | Path | Sequence[str | Path],
    config: AuditConfig | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> AuditResult:
    """Audit a model on a set of pictures.

    Args:
        vit: The model; it runs on the configured device in the configured precision, and is left
            as it was.
        images: A prepared set, or folders, files and lists of paths to make one of with the
            model's own preprocessing. A prepared set is taken as it is, so `limit`, `size` and
            `seed` must be left alone.
        config: Settings; the defaults if None.
        out: Folder to write the result into; a temporary one if None.
        overwrite: Whether an earlier result in `out` is replaced.
        on_progress: Called with (pictures done, pictures in all) after every batch.

    Returns:
        The result.

    Raises:
        UsageError: If settings, pictures or folder do not fit.
        ImageReadError: If no picture could be read.
        ImbalanceError: If a ledger does not balance.
        NonFiniteError: If an activation is not finite.
        VitscopeError: If the disk does not take the result.
    """
    config = config or AuditConfig()
    image_set = _make_image_set(vit, images, config)
    run = AuditRun(vit, image_set, config)
    if out is None:
        with scratch_folder() as folder:
            run.execute(folder, run.iter_batches(), on_progress)
        return AuditResult.own(folder)
    with staged_folder(Path(out), replaces=is_result if overwrite else never) as staging:
        run.execute(staging, run.iter_batches(), on_progress)
    return AuditResult(Path(out))


def _make_image_set(
    vit: ViTAdapter, images: ImageSet | str | Path | Sequence[str | Path], config: AuditConfig
) -> ImageSet:
    if isinstance(images, ImageSet):
        for name in ("limit", "size", "seed"):
            if getattr(config, name) != getattr(AuditConfig(), name):
                raise UsageError(
                    f"{name} is set, but the pictures come as a prepared ImageSet: choose them and "
                    "their size there, or give folders and files"
                )
        return images
    sources = [images] if isinstance(images, (str, Path)) else list(images)
    preprocessing = vit.preprocessing
    if config.input_size is not None:
        preprocessing = preprocessing.with_size(config.input_size)
    vit.make_layout(*preprocessing.size)
    return ImageSet.from_sources(sources, preprocessing, limit=config.limit, seed=config.seed)


class AuditRun:
    """One model over one set of pictures, into one folder."""

    def __init__(self, vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> None:
        """Prepare the run; the model is not touched yet.

        Args:
            vit: The model.
            images: The pictures.
            config: Settings.
        """
        self._layers = vit.select_layers(parse_layers(config.layers))
        self._device = config.resolve_device()
        self._weights_hash = hash_weights(vit.module)
        self._vit = vit
        self._images = images
        self._config = config
        self._manifest = self._make_manifest()

    def iter_batches(self) -> Iterator[ImageBatch]:
        """Decode the pictures.

        Returns:
            Their batches, in order.
        """
        return iter_batches(
            self._images,
            batch_size=self._config.batch_size,
            num_workers=self._config.num_workers,
            pin_memory=self._device.type == "cuda",
        )

    def execute(
        self, folder: Path, batches: Iterable[ImageBatch], on_progress: OnProgress | None
    ) -> None:
        """Take in all batches and write the result.

        Args:
            folder: Folder to write into.
            batches: The decoded pictures.
            on_progress: Called with (pictures done, pictures in all) after every batch.

        Raises:
            ImageReadError: If no picture could be read.
            ImbalanceError: If a ledger does not balance.
            NonFiniteError: If an activation is not finite.
        """
        started = datetime.now(UTC)
        failures: list[tuple[str, str]] = []
        sums = self._manifest.make_sums(folder)
        with ExitStack() as stack:
            stack.enter_context(self._vit.placed(self._device, self._config.torch_dtype))
            writers = self._open_writers(folder, stack)
            done = 0
            for batch in batches:
                failures += [
                    (printable_path(self._images.paths[f.index]), f.reason) for f in batch.failures
                ]
                if batch.indices:
                    self._take_batch(batch, sums, writers)
                done += len(batch.indices) + len(batch.failures)
                if on_progress is not None:
                    on_progress(done, len(self._images))
        if len(failures) == len(self._images):
            path, reason = failures[0]
            raise ImageReadError(
                f"none of the {len(failures)} pictures could be read; the first, {path}: {reason}"
            )
        provenance = self._make_provenance(started)
        finish_result(folder, self._manifest, sums, failures=failures, provenance=provenance)

    def _open_writers(self, folder: Path, stack: ExitStack) -> dict[int, RecordWriter]:
        keep = self._config.features == "keep"
        last = self._manifest.last_layer
        writers = {n: RecordWriter(folder, n, last, keep_features=keep) for n in self._layers}
        for writer in writers.values():
            stack.callback(writer.close)
        return writers

    def _take_batch(
        self,
        batch: ImageBatch,
        sums: Mapping[int, FeatureSums],
        writers: Mapping[int, RecordWriter],
    ) -> None:
        paths = [printable_path(self._images.paths[index]) for index in batch.indices]
        rows = self._decompose(batch, paths)
        blocks = [block_of(image_id) for image_id in batch.ids]
        identities = list(zip(paths, batch.ids, strict=True))
        for layer, row in rows.items():
            sums[layer].update(row.features, blocks)
            writers[layer].append(identities, row.scalars, row.features, {"bias": row.bias})

    def _decompose(self, batch: ImageBatch, paths: Sequence[str]) -> dict[int, LayerRows]:
        pixels = batch.pixels.to(self._device, non_blocking=True)
        try:
            return decompose_layers(
                self._vit,
                pixels,
                self._layers,
                renormalize=self._config.renormalize,
                tolerance=self._manifest.tolerance,
            )
        except NonFiniteError as error:
            raise self._locate_non_finite(error, pixels, paths) from None
        except RuntimeError as error:
            # torch's own OutOfMemoryError is of a GPU; the CPU's allocator raises this one.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(
                error
            ):
                raise
            raise VitscopeError(
                f"not enough memory on {self._device} for {len(paths)} pictures at a time: use a "
                "smaller batch size or input size"
            ) from None

    def _locate_non_finite(
        self, error: NonFiniteError, pixels: Pixels, paths: Sequence[str]
    ) -> VitscopeError:
        exact = self._config.dtype in {"float32", "float64"}
        remedy = "check the weights" if exact else "run in float32"
        found = self._vit.find_non_finite(pixels)
        if found is None:
            return VitscopeError(f"{error}, which is {paths[error.image]}: {remedy}")
        layer, image = found
        return NonFiniteError(
            f"NaN or infinite activations, first in the output of layer {layer}, for "
            f"{paths[image]}: {remedy}",
            image=image,
        )

    def _make_manifest(self) -> Manifest:
        vit, info, config = self._vit, self._vit.info, self._config
        size = self._images.preprocessing.size
        layout = vit.make_layout(*size)
        patch_height, patch_width = info.patch_size
        return Manifest(
            model={
                "id": info.id,
                "family": info.family,
                "num_params": info.num_params,
                "depth": info.depth,
                "embed_dim": info.embed_dim,
                "num_heads": info.num_heads,
                "patch_size": patch_height if patch_height == patch_width else info.patch_size,
                "num_registers": info.num_registers,
                "global_feature": info.global_feature,
                "input_size": list(size),
                "grid": list(layout.grid),
                "dtype": config.dtype,
                "notes": list(info.notes),
            },
            weights_hash=self._weights_hash,
            layers=self._layers,
            listed_layers=config.layers != "last",
            groups=tuple(layout.groups),
            has_skip=layout.query is not None,
            renormalize=config.renormalize,
            dtype="float64" if config.dtype == "float64" else "float32",
            preprocessing=asdict(self._images.preprocessing),
            tolerance=choose_tolerance(config.torch_dtype, self._device),
        )

    def _make_provenance(self, started: datetime) -> dict[str, Any]:
        return {
            "config": asdict(self._config),
            "model_source": self._vit.info.source,
            "weights_hash": self._weights_hash,
            "preprocessing": asdict(self._images.preprocessing),
            "num_pictures_given": len(self._images),
            "versions": {
                "python": platform.python_version(),
                **_library_versions(),
                "torch": torch.__version__,
            },
            "platform": platform.platform(),
            "device": str(self._device),
            "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
