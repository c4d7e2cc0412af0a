"""What every run of a model over pictures shares: batches, plain failures, where it all came from.

Requirements met here:

- A picture that cannot be read is counted and named; the run goes on while one is left.
- What stops a run says which picture, in which layer, and what to do.
- The model is placed on the device for the run alone and left as it was found.
"""

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from vitscope.config import RunConfig
from vitscope.errors import ImageReadError, NonFiniteError, VitscopeError
from vitscope.models.base import Pixels, ViTAdapter, hash_weights
from vitscope.pictures.images import ImageBatch, ImageSet, iter_batches
from vitscope.pictures.preprocessing import Preprocessing

OnProgress = Callable[[int, int], None]
"""Called with (done, in all)."""

_LIBRARIES = (
    "vitscope",
    "torch",
    "torchvision",
    "timm",
    "transformers",
    "open-clip-torch",
    "numpy",
)


@dataclass(frozen=True, eq=False)
class PlacedBatch:
    """Pictures that were read, where the model is.

    Attributes:
        indices: Their places in the set.
        ids: Their identities, which depend on their bytes alone.
        paths: Their paths, printable.
        pixels: Their preprocessed pixels, on the model's device.
        covariates: What describes them without a label, by name.
    """

    indices: list[int]
    ids: list[str]
    paths: list[str]
    pixels: Pixels
    covariates: dict[str, Float64[Tensor, " batch"]] = field(default_factory=dict)


class ModelRun:
    """One model over one set of pictures.

    Attributes:
        failures: Path and reason of each picture that could not be read so far.
    """

    def __init__(self, vit: ViTAdapter, images: ImageSet, config: RunConfig) -> None:
        """Prepare the run; the model is not touched yet.

        Args:
            vit: The model.
            images: The pictures.
            config: How it is run.
        """
        self.device = config.resolve_device()
        self.weights_hash = vit.weights_hash or hash_weights(vit.module)
        self.failures: list[tuple[str, str]] = []
        self._vit = vit
        self._images = images
        self._config = config
        self._started = datetime.now(UTC)

    @contextmanager
    def placed(self) -> Iterator[None]:
        """Have the model on the device and in the precision of the run.

        Yields:
            Nothing; the model is left as it was found when the context ends.
        """
        with self._vit.placed(self.device, self._config.torch_dtype):
            yield

    def iter_batches(
        self, on_progress: OnProgress | None, batches: Iterable[ImageBatch] | None = None
    ) -> Iterator[PlacedBatch]:
        """Go through the pictures in order; what happens to a batch is told in plain words.

        Args:
            on_progress: Called with (pictures done, pictures in all) after every batch.
            batches: The pictures already decoded; they are read if None.

        Yields:
            Batches of at least one picture that was read.

        Raises:
            ImageReadError: If no picture could be read.
        """
        done = 0
        for batch in self.read_batches() if batches is None else batches:
            self.failures += [
                (self._images.name_picture(f.index), f.reason) for f in batch.failures
            ]
            if batch.indices:
                paths = [self._images.name_picture(index) for index in batch.indices]
                pixels = batch.pixels.to(self.device, non_blocking=True)
                yield PlacedBatch(batch.indices, batch.ids, paths, pixels, batch.covariates)
            done += len(batch.indices) + len(batch.failures)
            if on_progress is not None:
                on_progress(done, len(self._images))
        self.check_some_read()

    def read_batches(self) -> Iterator[ImageBatch]:
        """Decode the pictures.

        Returns:
            Their batches, in order.
        """
        return iter_batches(
            self._images,
            batch_size=self._config.batch_size,
            num_workers=self._config.num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def check_some_read(self) -> None:
        """Refuse a run that has nothing to tell.

        Raises:
            ImageReadError: If every picture of the set is among the failures.
        """
        if len(self.failures) == len(self._images):
            path, reason = self.failures[0]
            raise ImageReadError(
                f"none of the {len(self.failures)} pictures could be read; the first, {path}: "
                f"{reason}"
            )

    @contextmanager
    def plain_errors(self, batch: PlacedBatch) -> Iterator[None]:
        """Say of what stops the work on a batch which picture it was, or that memory is short.

        Args:
            batch: The batch.

        Yields:
            Nothing.

        Raises:
            NonFiniteError: Naming layer and picture, where a layer's output is not finite.
            VitscopeError: Naming the picture, or what there is not enough memory for.
            RuntimeError: Any other of torch's, as it came.
        """
        try:
            yield
        except NonFiniteError as error:
            raise self._locate_non_finite(error, batch.pixels, batch.paths) from None
        except RuntimeError as error:
            # torch's own OutOfMemoryError is of a GPU; the CPU's allocator raises this one.
            if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(
                error
            ):
                raise
            raise VitscopeError(
                f"not enough memory on {self.device} for {len(batch.paths)} pictures at a time: "
                "use a smaller batch size or input size"
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

    def make_provenance(self) -> dict[str, Any]:
        """Where the numbers came from.

        Returns:
            Settings, preprocessing, weights, versions, machine and times.
        """
        return {
            "config": asdict(self._config),
            "model_source": self._vit.info.source,
            "weights_hash": self.weights_hash,
            "preprocessing": asdict(self._images.preprocessing),
            "num_pictures_given": len(self._images),
            "versions": {
                "python": platform.python_version(),
                **_library_versions(),
                "torch": torch.__version__,
            },
            "platform": platform.platform(),
            "device": str(self.device),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def choose_preprocessing(vit: ViTAdapter, config: RunConfig) -> Preprocessing:
    """How the pictures are prepared, at the input size that was asked for.

    Args:
        vit: The model; an input size that does not fit its patches is refused.
        config: How it is run.

    Returns:
        The model's own preprocessing, or the same at the size asked for.
    """
    preprocessing = vit.preprocessing
    if config.input_size is not None:
        preprocessing = preprocessing.with_size(config.input_size)
    vit.make_layout(*preprocessing.size)
    return preprocessing


def describe_model(vit: ViTAdapter, size: tuple[int, int], dtype: str) -> dict[str, Any]:
    """The `model` part of a summary.

    Args:
        vit: The model.
        size: Input height and width in pixels.
        dtype: Precision it runs in.

    Returns:
        What it is, in words and numbers that JSON takes.
    """
    info, layout = vit.info, vit.make_layout(*size)
    patch_height, patch_width = info.patch_size
    return {
        "id": info.id,
        "family": info.family,
        "recipe": info.recipe or info.family,
        "size": info.size,
        "num_params": info.num_params,
        "depth": info.depth,
        "embed_dim": info.embed_dim,
        "num_heads": info.num_heads,
        "patch_size": patch_height if patch_height == patch_width else info.patch_size,
        "num_registers": info.num_registers,
        "global_feature": info.global_feature,
        "input_size": list(size),
        "grid": list(layout.grid),
        "dtype": dtype,
        "notes": list(info.notes),
    }


def _library_versions() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
