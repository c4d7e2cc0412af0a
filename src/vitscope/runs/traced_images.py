"""Tracing a sample of an audit's images back through all blocks."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from vitscope.config import AuditConfig
from vitscope.errors import UsageError
from vitscope.images.image_set import ImageBatch, ImageSet
from vitscope.maps.method import MapInput
from vitscope.maps.references import make_references
from vitscope.maps.targets import explain_self
from vitscope.maps.traced import Trace, trace_output
from vitscope.models.base import ViTAdapter
from vitscope.models.running import HALF_PRECISIONS
from vitscope.results.trace_summary import make_rows, write_traces
from vitscope.runs.model_run import ModelRun


def check_traceable(config: AuditConfig) -> None:
    """Refuse a precision in which differences are rounded away."""
    if config.trace and config.torch_dtype in HALF_PRECISIONS:
        raise UsageError(
            f"trace is set, but {config.dtype} rounds away the differences between images that are "
            "traced: use float32"
        )


def trace_images(folder: Path, vit: ViTAdapter, images: ImageSet, config: AuditConfig) -> None:
    """Trace images drawn at random and write their rows.

    Each is compared with up to four others of them, and centred on the mean feature of all.
    """
    count = min(config.trace, len(images))
    drawn = np.random.default_rng(config.seed).choice(len(images), count, replace=False)
    chosen = images.select(sorted(drawn.tolist()))
    run = ModelRun(vit, chosen, config)
    with run.placed():
        references = make_references(vit, (batch.pixels for batch in _iter_passes(run)))
        if references.num_images < 2:
            raise UsageError(
                "trace compares images with each other: expected at least two readable ones"
            )
        tables: list[pa.Table] = []
        for batch in _iter_passes(run):
            given = MapInput(
                vit=vit, pixels=batch.pixels, choice=explain_self, references=references
            )
            with run.plain_errors(batch):
                trace = trace_output(given)
            tables.append(make_rows(batch.ids, _list_columns(given, trace)))
    write_traces(folder, pa.concat_tables(tables))


def _iter_passes(run: ModelRun) -> Iterator[ImageBatch]:
    for batch in run.iter_batches(None):
        size = run.pass_size or len(batch.ids)
        for start in range(0, len(batch.ids), size):
            yield batch.select(slice(start, start + size))


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
    return {name: _to_numpy(values) for name, values in {**shares, **others}.items()}


def _to_numpy(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().to("cpu", torch.float64))
