"""One model over one set of images: its shards, the writer of their parts, the result."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from vitscope.config import AuditConfig
from vitscope.decomposition import choose_groups
from vitscope.files.json_files import read_json
from vitscope.files.workspace import Plan
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.ledger import balance_tolerance
from vitscope.metrics.feature_sums import rows_before_fold
from vitscope.metrics.other_metrics import OtherMetrics, find_packages
from vitscope.models.base import ViTAdapter
from vitscope.models.stream import name_tokens
from vitscope.results.finishing import finish_result, merge_parts, read_ids
from vitscope.results.gallery import Choice, GalleryCandidates, write_gallery
from vitscope.results.image_maps import ImageMap
from vitscope.results.manifest import Manifest
from vitscope.runs.chosen_maps import choose_gallery_maps, map_gallery
from vitscope.runs.digests import digest_sets
from vitscope.runs.model_run import ModelRun, OnProgress, check_steady, take_share
from vitscope.runs.part_writer import MACHINE, PartWriter, Shard
from vitscope.runs.resources import list_versions
from vitscope.runs.traced_images import TracedImages

_CHOICES = ("batch_size", "dtype", "shard_size")
"""Settings that `auto` chooses for the machine when a run begins."""

_SETTINGS = (*_CHOICES, "seed", "verified", "features", "gallery", "maps", "trace")

_SHARD_IMAGES, _SHARD_BATCHES = 512, 32
"""Least size of a shard: reading ahead restarts with every shard."""


class AuditRun(ModelRun[AuditConfig]):
    """One model over one set of images."""

    def __init__(
        self,
        vit: ViTAdapter,
        images: ImageSet,
        config: AuditConfig,
        earlier: Plan | None = None,
        *,
        shown: Sequence[str] | None = None,
    ) -> None:
        """Prepare the run; the model is used only if a setting must be chosen.

        `earlier` is the plan of a run to resume: the machine might choose differently now. `shown`
        are digests of the images of the gallery; by default it is chosen.
        """
        if earlier is not None:
            chosen = [name for name in _CHOICES if getattr(config, name) == "auto"]
            config = replace(config, **{name: earlier[name] for name in chosen if name in earlier})
        metrics = find_packages(config.metrics or ())
        if config.trace:
            check_steady(images.addresses, "trace")
        OtherMetrics(metrics)  # which refuses what is no metric, before the work
        vit = vit if vit.weights_hash else vit.hashed()
        layers = vit.select_layers(config.layers)
        if not isinstance(config.layers, str):
            config = replace(config, layers=layers)  # counted from 0, in the provenance too
        self._whole = images
        images = take_share(images, config.shard)
        super().__init__(vit, images, config)
        self.config = _size_shards(self.config)
        # The number of decoding processes changes no bit; every machine chooses its own.
        self._portable = replace(self.config, num_workers=config.num_workers)
        self._maps = choose_gallery_maps(vit, images, self.config)
        self._manifest = self._make_manifest(layers, metrics)
        self._shown = shown
        self._traced = TracedImages(vit, images, self.config) if config.trace else None

    def count_bytes(self, shards: Iterable[Shard]) -> int:
        """Lower bound on the disk space of the parts of shards: their rows of features."""
        manifest = self._manifest
        # The width of embeddings is not known yet.
        num_features = sum(
            not name.startswith("embedding/")
            for layer in manifest.layers
            for name in manifest.make_plan(layer).kept
        )
        width = manifest.model.embed_dim
        row_bytes = num_features * width * int(getattr(torch, manifest.dtype).itemsize)
        sizes = [len(shard.images) for shard in shards]
        # Larger shards are folded into moments, which take as much as this many rows.
        num_rows = sum(min(size, rows_before_fold(width)) for size in sizes)
        if self.config.features == "keep":
            num_rows += sum(sizes)  # written twice: for the sums, and to be kept
        return num_rows * row_bytes

    @cached_property
    def shards(self) -> list[Shard]:
        """The images, cut into shards."""
        size, count = self.config.shard_size, len(self.images)
        assert not isinstance(size, str)  # "auto" is settled
        return [
            Shard(number, start, self.images.select(range(start, min(start + size, count))))
            for number, start in enumerate(range(0, count, size))
        ]

    @cached_property
    def plan(self) -> Plan:
        """All that the bits of the result depend on."""
        config = self.config
        plan = {
            "num_images": len(self.images),
            **digest_sets(names=self._whole, images=self.images),
            "num_repeated": self.images.num_repeated,
            "described": self.images.described,
            **{name: getattr(config, name) for name in _SETTINGS},
            "shard": None if config.shard is None else "{}/{}".format(*config.shard),
            "result": asdict(self._manifest),
            "device": self.device.type,
            "pass_size": self.pass_size,
            "versions": list_versions(config.maps or ()),
        }
        found: Plan = json.loads(json.dumps(plan))
        return found

    def make_writer(self) -> PartWriter:
        """The writer that turns shards into parts; it can be sent to other processes."""
        return PartWriter(self.vit, self._manifest, self._portable, len(self.images))

    def check_traceable(self) -> None:
        """Refuse a model that cannot be traced, if that is asked for."""
        if self._traced is not None:
            self._traced.check()

    def execute(self, folder: Path, batches: Iterable[ImageBatch]) -> None:
        """Audit decoded images as one shard in this process."""
        self.check_traceable()
        with TemporaryDirectory(prefix="vitscope-part-") as part:
            self.make_writer().write(Path(part), Shard(0, 0, self.images), batches=batches)
            self.finish(folder, [Path(part)])

    def finish(
        self,
        folder: Path,
        parts: Sequence[Path],
        run_id: str | None = None,
        *,
        on_trace: OnProgress | None = None,
    ) -> None:
        """Merge the parts and write the result."""
        sums, self.failures[:] = merge_parts(folder, self._manifest, parts)
        self.check_some_read()
        if self._traced is not None:
            self._traced.write(folder, frozenset(read_ids(folder).to_pylist()), on_trace)
        finish_result(
            folder,
            self._manifest,
            sums,
            failures=self.failures,
            provenance={
                **self.make_provenance(self.config.maps or ()),
                "plan": self.plan,
                "run": run_id,
                "machines": _list_machines(parts),
            },
        )
        if self.config.gallery:
            self._write_gallery(folder, parts)

    def _make_manifest(self, layers: tuple[int, ...], metrics: Mapping[str, str]) -> Manifest:
        config, layout = self.config, self.vit.make_layout(*self.images.preprocessing.size)
        return Manifest(
            model=self.describe_model(),
            weights_hash=self.weights_hash,
            behaviour_hash=self.behaviour.digest,
            unknown=self.behaviour.unknown,
            layers=layers,
            groups=choose_groups(layout, config.cls_term),
            has_skip=layout.query is not None,
            tokens=() if layout.query is None else name_tokens(layout),
            renormalize=config.renormalize,
            cls_term=config.cls_term,
            dtype="float64" if config.dtype == "float64" else "float32",
            preprocessing=self.describe_preprocessing(),
            has_masks=bool(self.images.masks),
            tolerance=balance_tolerance(config.torch_dtype, self.device),
            metrics=metrics,
        )

    def _write_gallery(self, folder: Path, parts: Sequence[Path]) -> None:
        candidates = GalleryCandidates(len(self.images))
        for part in parts:
            candidates.read(part)
        chosen = candidates.choose(folder, self.config.gallery, self._shown)
        images = self.images.select(one.index for one in chosen)
        others = map_gallery(self.vit, images, self.config, self._maps)
        layout = self.vit.make_layout(*images.preprocessing.size)
        found: list[tuple[Choice, dict[str, ImageMap]]] = []
        for one in chosen:
            row = candidates.place(one.image_id, layout)
            maps = self._maps.arrange(row | others.get(one.image_id, {}))
            if maps:
                found.append((one, maps))
        write_gallery(
            folder,
            self.images,
            found,
            limit=self.config.gallery,
            num_candidates=len(candidates),
        )


def _list_machines(parts: Sequence[Path]) -> list[Any]:
    # Distinct machines of the parts: device, platform and versions.
    found: list[Any] = []
    for part in parts:
        machine = read_json(part / MACHINE)
        if machine not in found:
            found.append(machine)
    return found


def _size_shards(config: AuditConfig) -> AuditConfig:
    if not isinstance(config.shard_size, str):
        return config
    assert not isinstance(config.batch_size, str)
    return replace(config, shard_size=max(_SHARD_IMAGES, _SHARD_BATCHES * config.batch_size))
