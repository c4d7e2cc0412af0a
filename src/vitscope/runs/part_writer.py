"""One shard of an audit as a part on disk, which depends only on images, model and settings."""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path

import torch
from torch import Tensor

from vitscope.config import AuditConfig
from vitscope.decomposition import LayerRows, decompose_layers
from vitscope.files.json_files import write_json
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.ledger import ScalarPath, check_rows_finite, cosine
from vitscope.metrics.jackknife import block_of
from vitscope.metrics.sums import Batch
from vitscope.models.base import ViTAdapter
from vitscope.results.gallery import GalleryCandidates
from vitscope.results.manifest import Manifest, write_sums
from vitscope.results.records import RecordWriter
from vitscope.results.saved_result import write_failures
from vitscope.runs.model_run import ModelRun, OnProgress, drop_copies
from vitscope.trace import StreamTrace, TokenStates

MACHINE = "machine.json"


@dataclass(frozen=True, eq=False)
class Shard:
    """Some images of a run."""

    number: int
    first_index: int  # index of its first image among all
    images: ImageSet
    elsewhere: frozenset[str] = frozenset()  # identities of images that an earlier shard has


@dataclass(frozen=True, eq=False)
class PartWriter:
    """A model and settings that turn shards into parts."""

    vit: ViTAdapter
    manifest: Manifest
    config: AuditConfig  # every setting that changes a bit is chosen
    num_images: int  # of the whole run; a gallery's candidates are drawn from all of them

    def write(
        self,
        folder: Path,
        shard: Shard,
        *,
        batches: Iterable[ImageBatch] | None = None,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Write the part of a shard; its images are decoded unless given as batches."""
        part = _Part(self, folder, shard)
        with ExitStack() as stack:
            stack.enter_context(part.placed())
            part.open_writers(stack)
            different = filter(None, map(part.drop_copies, part.iter_batches(on_progress, batches)))
            for number, batch in enumerate(different):
                verified = number == 0 or self._is_drawn(batch.ids[0])
                part.apply(batch, partial(part.take, verified=verified))
        part.close()

    def _is_drawn(self, image_id: str) -> bool:
        digest = blake2b(f"{self.config.seed} {image_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self.config.verified * 2**64


class _Part(ModelRun[AuditConfig]):
    """Tables and sums of one shard."""

    def __init__(self, writer: PartWriter, folder: Path, shard: Shard) -> None:
        super().__init__(writer.vit, shard.images, writer.config)
        self._manifest = writer.manifest
        self._folder = folder
        self._first_index = shard.first_index
        self._seen = set(shard.elsewhere)
        self._sums = self._manifest.make_sums(folder)
        self._sums.num_repeated = shard.images.num_repeated
        self._candidates = GalleryCandidates(writer.num_images)
        self._writers: dict[int, RecordWriter] = {}

    def open_writers(self, stack: ExitStack) -> None:
        keep = self.config.features == "keep"
        last = self._manifest.last_layer
        for layer in self._manifest.layers:
            writer = RecordWriter(self._folder, layer, last, keep_features=keep)
            stack.callback(writer.close)
            self._writers[layer] = writer

    def drop_copies(self, batch: ImageBatch) -> ImageBatch | None:
        """Leave out images with the same bytes as earlier ones; None if no other is left."""
        kept = drop_copies(batch, self._seen)
        self._sums.num_repeated += len(batch.ids) - len(kept.ids)
        return kept if kept.ids else None

    def take(self, batch: ImageBatch, *, verified: bool) -> None:
        """Add a batch, or nothing of it if any of it fails."""
        streams: list[StreamTrace] = []
        with self.plain_errors(batch):
            rows = self._decompose(batch, streams, verified=verified)
            (stream,) = streams
            patch_norms = stream.patch_norms.cpu()
            self._check_patches(patch_norms, rows)
        blocks = [block_of(image_id) for image_id in batch.ids]
        scalars_of_last = _describe_stream(stream.rows, patch_norms)
        scalars_of_last |= {("covariate", k): v for k, v in batch.covariates.items()}
        scalars_of_last["level_range",] = torch.tensor(batch.level_ranges, dtype=torch.float64)
        for layer, row in rows.items():
            states = {} if row.tokens is None else row.tokens.states
            self._sums.update(layer, Batch(row.features, blocks, states, patch_norms))
            scalars = dict(row.scalars)
            medians = patch_norms[:, layer].median(dim=-1).values
            scalars["median_patch_norm", f"{layer:02d}"] = medians
            if row.tokens is not None:
                scalars |= _describe_tokens(row.tokens)
            if layer == self._manifest.last_layer:
                scalars |= scalars_of_last
            identities = list(zip(self.name_images(batch), batch.ids, strict=True))
            self._writers[layer].append(identities, scalars, row.features, {"bias": row.bias})

    def close(self) -> None:
        write_sums(self._folder, self._manifest, self._sums)
        if self.config.gallery:
            self._candidates.write(self._folder)
        write_failures(self._folder, self.failures)
        write_json(self._folder / MACHINE, self.describe_machine(self.config.maps or ()))

    def _decompose(
        self, batch: ImageBatch, streams: list[StreamTrace], *, verified: bool
    ) -> dict[int, LayerRows]:
        wanted: list[int] = []
        if self.config.gallery:
            wanted = [row for row, name in enumerate(batch.ids) if self._candidates.wants(name)]
        places = [self._first_index + batch.indices[row] for row in wanted]
        names = [batch.ids[row] for row in wanted]
        return decompose_layers(
            self.vit,
            batch.pixels,
            self._manifest.layers,
            renormalize=self.config.renormalize,
            tolerance=self._manifest.tolerance,
            cls_term=self.config.cls_term,
            verified=verified,
            on_stream=streams.append,
            on_maps=partial(self._candidates.update, places, names) if wanted else None,
            mapped=wanted,
        )

    def _check_patches(self, patch_norms: Tensor, rows: Mapping[int, LayerRows]) -> None:
        # No analysed row depends on the last block's patches, which exist only if verified.
        last = self._manifest.last_layer
        is_verified = bool(rows[last].scalars["balance_error",].isfinite().all())
        known = patch_norms if is_verified else patch_norms[:, :-1]
        finite = known.isfinite().flatten(1).all(dim=-1)
        check_rows_finite(finite, "of patches ", last)


def _describe_stream(rows: Tensor | None, patch_norms: Tensor) -> dict[ScalarPath, Tensor]:
    scalars: dict[ScalarPath, Tensor] = {}
    if rows is not None:
        exact = rows.cpu().double()
        for depth in range(exact.shape[1]):
            scalars["layer_similarity", f"{depth:02d}"] = cosine(exact[:, depth], exact[:, -1])
    for depth, highest in enumerate(patch_norms.amax(dim=-1).unbind(dim=1)):
        scalars["highest_patch_norm", f"{depth:02d}"] = highest
    return scalars


def _describe_tokens(tokens: TokenStates) -> dict[ScalarPath, Tensor]:
    norms = zip(tokens.names, tokens.norms.unbind(dim=1), strict=True)
    scalars: dict[ScalarPath, Tensor] = {("token_norm", name): norm for name, norm in norms}
    return scalars | {("token_norm", "patches"): tokens.mean_patch_norm}
