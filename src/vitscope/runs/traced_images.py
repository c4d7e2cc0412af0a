"""Tracing a sample of an audit's images back through all blocks."""

from collections.abc import Container, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from vitscope.config import AuditConfig
from vitscope.errors import UsageError, VitscopeError
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.maps.checks import check_traced
from vitscope.maps.method import MapInput
from vitscope.maps.references import NUM_TRACED, References, make_references
from vitscope.maps.targets import explain_self
from vitscope.maps.traced import Trace, trace_output
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import check_memory
from vitscope.results.summary import make_rows, write_traces
from vitscope.runs.model_run import ModelRun, OnProgress


class TracedImages(ModelRun[AuditConfig]):
    """A sample of a run's images; each is compared with others of them.

    Images that cannot be read are passed over, and copies are drawn once.
    """

    def __init__(self, vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> None:
        check_traced(vit)
        order = np.random.default_rng(config.seed).permutation(len(images))
        shuffled = replace(images.select(order.tolist()), described=False)
        # As many at a time as are kept for comparison, so that neither takes most of the memory.
        super().__init__(vit, shuffled, replace(config, batch_size=NUM_TRACED))
        self.pass_size = min(self.pass_size or NUM_TRACED, NUM_TRACED)

    def check(self) -> None:
        """Trace one image, to refuse before a run what would fail after it."""
        with self._prepared():
            kept = NUM_TRACED + (self.pass_size or NUM_TRACED)
            check_memory(self.vit, self.images.preprocessing.size, self.device, kept=kept)
            batches = list(self._iter_sample(NUM_TRACED + 1))
            if not batches:
                return  # no image can be read; the run will report it
            tried = batches[-1].select(slice(-1, None))
            with self.plain_errors(tried):
                references = make_references(self.vit, (batch.pixels for batch in batches))
                if references.num_images < 2:
                    raise UsageError(
                        "trace compares images with each other: expected two or more different "
                        "ones that can be read, found one"
                    )
                given = self._explain(tried.pixels, references)
                if not bool(references.mean_feature.isfinite().all()):
                    return  # the run will report it
                feature, mean = given.own.feature, references.mean_feature
                noise = 10 * torch.finfo(feature.dtype).eps * mean.norm()
                if bool((feature - mean).norm() <= noise):
                    raise UsageError(
                        "trace follows what differs between images, and the output is the same "
                        f"for the first {NUM_TRACED + 1} that were tried"
                    )
                trace_output(given)

    def write(
        self, folder: Path, audited: Container[str], on_progress: OnProgress | None = None
    ) -> None:
        """Trace images that were audited, and write their rows."""
        rows: list[pa.Table] = []

        def trace(batch: ImageBatch) -> None:
            given = self._explain(batch.pixels, references)
            with self.plain_errors(batch):
                found = trace_output(given)
            rows.append(make_rows(batch.ids, _list_columns(given, found)))

        with self._prepared():
            sample = self._iter_sample(self.config.trace, audited)
            references = make_references(self.vit, (batch.pixels for batch in sample))
            done = 0

            def tell(of_batch: int = 0) -> None:
                if on_progress is not None:
                    on_progress(done + of_batch, references.num_images)

            for batch in self._iter_sample(self.config.trace, audited):
                self.apply(batch, trace, tell)
                done += len(batch.ids)
                tell()
        write_traces(folder, pa.concat_tables(rows))

    def _iter_sample(self, count: int, among: Container[str] | None = None) -> Iterator[ImageBatch]:
        seen: set[str] = set()
        for batch in self.iter_batches(None):
            rows = []
            for row, image_id in enumerate(batch.ids):
                known = image_id in seen or not (among is None or image_id in among)
                if not known and len(seen) < count:
                    seen.add(image_id)
                    rows.append(row)
            if rows:
                yield batch.select(rows)
            if len(seen) == count:
                return

    def _explain(self, pixels: Pixels, references: References) -> MapInput:
        return MapInput(
            vit=self.vit,
            pixels=pixels,
            choice=explain_self,
            references=references,
            keeps_attentions=False,
        )

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        try:
            # A caller's inference mode would keep gradients from being computed.
            with torch.inference_mode(False), self.placed():
                yield
        except VitscopeError as error:
            error.add_note("only tracing failed: without trace the audit may run")
            raise


def _list_columns(given: MapInput, trace: Trace) -> dict[str, np.ndarray]:
    parts = trace.parts
    offset = parts.shape[2] - given.layout.num_tokens
    shares = {
        name: parts[:, :, offset + positions.start : offset + positions.stop].sum(dim=2)
        for name, positions in given.layout.groups.items()
    }
    if offset:
        shares["unread"] = parts[:, :, :offset].sum(dim=2)
    others = {
        "total": trace.total,
        "gap": trace.gap,
        "through_values": trace.through_values,
        "through_routing": trace.through_routing,
    }
    return {
        name: np.asarray(values.detach().to("cpu", torch.float64))
        for name, values in {**shares, **others}.items()
    }
