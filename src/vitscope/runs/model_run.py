"""Common to all runs of a model over images: batches, failures, provenance."""

import json
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Any, Generic

import numpy as np
import torch

from vitscope.config import AuditConfig, Config, JudgeConfig, RunConfig
from vitscope.errors import (
    ImageReadError,
    ImbalanceError,
    NonFiniteError,
    UsageError,
    VitscopeError,
)
from vitscope.files.json_files import dump_json
from vitscope.files.workspace import Plan
from vitscope.images.addresses import ImageAddress, Images
from vitscope.images.image_set import ImageBatch, ImageSet, iter_batches
from vitscope.images.in_memory import HeldImage
from vitscope.models.base import ViTAdapter
from vitscope.models.identity import Behaviour, hash_weights
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.schema import ModelSummary, PreprocessingSummary
from vitscope.runs.resources import (
    choose_pass_size,
    fits,
    list_versions,
    plain_memory_errors,
    settle_config,
)
from vitscope.trace import ClsTrace

OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


class ModelRun(Generic[Config]):
    """One model over one set of images: the base of every run."""

    def __init__(self, vit: ViTAdapter, images: ImageSet, config: Config) -> None:
        """Prepare the run; the model is used only if a setting must be chosen."""
        self.vit, self.images = vit, images
        self.device = config.resolve_device()
        self.config = settle_config(vit, images, config, self.device)
        self.pass_size = choose_pass_size(vit, images.preprocessing.size, self.device)
        with vit.undisturbed():
            self.weights_hash = vit.weights_hash or hash_weights(vit.module)
        self.failures: list[tuple[str, str]] = []
        self._started = datetime.now(UTC)
        self._on_progress: OnProgress | None = None
        self._done = 0

    @cached_property
    def behaviour(self) -> Behaviour:
        """What the model computes with its weights."""
        return self.vit.describe_behaviour()

    def placed(self, other: ViTAdapter | None = None) -> AbstractContextManager[None]:
        """Context with the model, or another, on the device and in the precision of the run."""
        return (other or self.vit).placed(self.device, self.config.torch_dtype)

    def iter_batches(
        self, on_progress: OnProgress | None, batches: Iterable[ImageBatch] | None = None
    ) -> Iterator[ImageBatch]:
        """Iterate over the images in order; errors within a batch name its images."""
        self._on_progress, self._done = on_progress, 0
        for batch in self.read_batches() if batches is None else batches:
            self.failures += [(self.images.name_image(f.index), f.reason) for f in batch.failures]
            if batch.indices:
                pixels = batch.pixels.to(self.device, non_blocking=True)
                yield replace(batch, pixels=pixels, failures=[])
            self._done += len(batch.indices) + len(batch.failures)
            self.tell_progress()

    def tell_progress(self, of_batch: int = 0) -> None:
        """Tell how many images are done, with those of the current batch."""
        if self._on_progress is not None:
            self._on_progress(self._done + of_batch, len(self.images))

    def read_batches(self) -> Iterator[ImageBatch]:
        """Decode the images."""
        batch_size, num_workers = self.config.batch_size, self.config.num_workers
        assert not isinstance(batch_size, str)
        assert not isinstance(num_workers, str)
        return iter_batches(
            self.images,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )

    def apply(
        self,
        batch: ImageBatch,
        work: Callable[[ImageBatch], None],
        on_pass: Callable[[int], None] | None = None,
    ) -> None:
        """Process a batch in passes; one that does not fit into memory is halved from then on.

        Between passes `on_pass`, by default the run's own progress, gets what is done of the batch.
        """
        done, count = 0, len(batch.ids)
        while done < count:
            piece = batch.select(slice(done, done + (self.pass_size or count)))
            if fits(partial(work, piece), len(piece.ids)):
                done += len(piece.ids)
                if done < count:
                    (on_pass or self.tell_progress)(done)
            else:
                self.pass_size = (len(piece.ids) + 1) // 2

    def name_images(self, batch: ImageBatch) -> list[str]:
        """Names of a batch's images in tables and messages."""
        return [self.images.name_image(index) for index in batch.indices]

    def check_some_read(self) -> None:
        """Raise if no image could be read."""
        if len(self.failures) == len(self.images):
            path, reason = self.failures[0]
            if len(self.failures) == 1:
                raise ImageReadError(f"{path} cannot be read: {reason}")
            raise ImageReadError(
                f"none of the {len(self.failures)} images could be read; the first, {path}: "
                f"{reason}"
            )

    @contextmanager
    def plain_errors(self, batch: ImageBatch) -> Iterator[None]:
        """Name the image in errors of a batch, and say plainly if memory is short."""
        try:
            with plain_memory_errors(self.device, len(batch.ids)):
                yield
        except NonFiniteError as error:
            raise self._locate_non_finite(error, batch) from None
        except ImbalanceError as error:
            if self.config.torch_dtype not in HALF_PRECISIONS:
                raise
            # The first images balanced when auto chose the precision; these do not.
            raise ImbalanceError(
                f"{error}; or {self.config.dtype}, asked for or chosen by dtype auto on the "
                "first images, is too coarse for this model: give dtype='float32'"
            ) from None

    def _locate_non_finite(self, error: NonFiniteError, batch: ImageBatch) -> VitscopeError:
        paths = self.name_images(batch)
        half = self.config.torch_dtype in HALF_PRECISIONS
        remedy = "run in float32" if half else "check the weights"
        # (layer, image within the batch) of each layer whose output row is not finite.
        found: list[tuple[int, int]] = []

        def look(trace: ClsTrace) -> None:
            assert trace.output is not None
            bad = ~trace.output.isfinite().all(dim=-1)
            if bad.any():
                found.append((trace.layer, int(bad.nonzero()[0, 0])))

        self.vit.trace(batch.pixels, sorted(self.vit.blocks), look)
        if not found:
            return VitscopeError(f"{error}, which is {paths[error.image]}: {remedy}")
        layer, image = found[0]
        return NonFiniteError(
            f"NaN or infinite activations, first in the output of layer {layer}, for "
            f"{paths[image]}: {remedy}",
            image=image,
        )

    def describe_preprocessing(self) -> PreprocessingSummary:
        """The preprocessing, and which of its fields are not the model's own."""
        own, values = asdict(self.vit.preprocessing), asdict(self.images.preprocessing)
        changed = tuple(name for name, value in values.items() if own[name] != value)
        return PreprocessingSummary(**values, changed=changed)

    def describe_machine(self, maps: Iterable[str] = ()) -> dict[str, Any]:
        """Device, platform and versions, also of packages that declare these maps."""
        is_gpu = self.device.type == "cuda"
        return {
            "versions": list_versions(maps),
            "platform": platform.platform(),
            "device": str(self.device),
            "device_name": (
                torch.cuda.get_device_name(self.device) if is_gpu else platform.machine()
            ),
        }

    def describe_model(self) -> ModelSummary:
        """The model's entry in the summary."""
        info = self.vit.info
        described = asdict(info) | {
            "recipe": info.recipe or info.family,
            "grid": self.vit.make_layout(*self.images.preprocessing.size).grid,
            "dtype": str(self.config.dtype),
            "notes": (
                *info.notes,
                *(
                    f"{unknown} is code that cannot be compared, so that this result cannot be "
                    "merged, resumed or used as a reference"
                    for unknown in self.behaviour.unknown
                ),
            ),
        }
        del described["source"]
        return ModelSummary(**described)

    def make_plan(self, kind: str, maps: Iterable[str] = (), /, **settings: Any) -> Plan:
        """All that numbers of single images depend on: settings, model, device and versions."""
        plan = {
            "kind": kind,
            **{name: getattr(self.config, name) for name in ("seed", "dtype")},
            **settings,
            "weights_hash": self.weights_hash,
            "behaviour_hash": self.behaviour.digest,
            "unknown": self.behaviour.unknown,
            "preprocessing": asdict(self.images.preprocessing),
            "device": self.device.type,
            "versions": list_versions(maps),
        }
        found: Plan = json.loads(dump_json(plan))
        return found

    def make_provenance(self, maps: Iterable[str] = ()) -> dict[str, Any]:
        """Provenance of the numbers, and of these maps."""
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        date = finished.partition("T")[0]
        return {
            "name": self.config.name or ", ".join(filter(None, (self.images.name, date))),
            **self.describe_machine(maps),
            "config": asdict(self.config),
            "model_source": self.vit.info.source,
            "weights_hash": self.weights_hash,
            "behaviour_hash": self.behaviour.digest,
            "preprocessing": asdict(self.images.preprocessing),
            "num_images_given": len(self.images),
            "notes": list(self.images.notes),
            "started": self._started.isoformat(timespec="seconds"),
            "finished": finished,
        }


def make_image_set(
    vit: ViTAdapter, images: ImageSet | Images, config: RunConfig, *, preprocessed: bool = False
) -> ImageSet:
    """The images of a run as a set."""
    if isinstance(images, ImageSet):
        for name in ("limit", "size", "draft", "seed", "masks"):
            if getattr(config, name, None) != getattr(type(config)(), name, None):
                raise UsageError(
                    f"{name} is set, but the images come as a prepared ImageSet: choose them and "
                    "their size there, or give folders and files"
                )
        if preprocessed:
            raise UsageError(
                "preprocessed=True with an ImageSet: give it to ImageSet.from_sources instead"
            )
        return images
    if preprocessed and config.size is not None:
        raise UsageError("size is set, but preprocessed pixels have their own: leave one out")
    preprocessing = replace(vit.preprocessing, draft=config.draft)
    if config.input_size is not None:
        preprocessing = preprocessing.with_size(config.input_size)
    vit.make_layout(*preprocessing.size)
    # The limit of one-shot classification is one of classes.
    chosen = config if isinstance(config, AuditConfig | JudgeConfig) else AuditConfig()
    found = ImageSet.from_sources(
        images,
        preprocessing,
        preprocessed=preprocessed,
        limit=chosen.limit,
        seed=config.seed,
        masks=chosen.masks,
    )
    vit.make_layout(*found.preprocessing.size)
    return found


def check_steady(addresses: Iterable[ImageAddress], setting: str) -> None:
    """Refuse a setting that reads images again if they may differ between readings."""
    for address in addresses:
        if isinstance(address, HeldImage) and address.from_dataset:
            raise UsageError(
                f"{address.name} comes from a dataset, which may give out another image than it "
                f"did before: leave {setting} out, or give files"
            )


def drop_copies(batch: ImageBatch, seen: set[str]) -> ImageBatch:
    """Leave out images with the same bytes as earlier ones; the others are earlier ones then."""
    rows: list[int] = []
    for row, image_id in enumerate(batch.ids):
        if image_id not in seen:
            seen.add(image_id)
            rows.append(row)
    return batch if len(rows) == len(batch.ids) else batch.select(rows)


def take_share(images: ImageSet, shard: tuple[int, int] | None) -> ImageSet:
    """The images of one shard; all without one."""
    if shard is None:
        return images
    check_steady(images.addresses, "shard")
    number, count = shard
    start, stop = (len(images) * k // count for k in (number - 1, number))
    if start == stop:
        raise UsageError(
            f"shard {number}/{count} of {len(images)} images holds none: use no more shards than "
            "images"
        )
    return images.select(range(start, stop))


def shuffle_images(images: ImageSet, seed: int) -> ImageSet:
    """References in random order: the first few, to trace against, are not of one folder."""
    order = np.random.default_rng(seed).permutation(len(images))
    return images.select(order.tolist())
