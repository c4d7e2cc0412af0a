"""What a run takes of the machine where it is left to choose: batch size, precision, processes."""

import os
from dataclasses import replace
from typing import TypeVar

import torch

from vitscope.config import AuditConfig, DTypeName, RunConfig, parse_layers
from vitscope.decomposition import choose_dtype
from vitscope.models.base import ViTAdapter
from vitscope.pictures.images import ImageSet, iter_batches

_CPU_PIXELS = 32 * 224 * 224
"""Pixels of a batch on a CPU: its caches are used well, and more gains nothing."""

_MAX_BATCH = 512
_SHARE_OF_MEMORY = 0.6
_PROBES = (1, 9)
_MAX_WORKERS = 8
_TRIED = 8
"""Pictures that a lower precision is tried on."""


_Config = TypeVar("_Config", bound=RunConfig)


def settle_config(
    vit: ViTAdapter, images: ImageSet, config: _Config, device: torch.device
) -> _Config:
    """Settings with nothing left to choose.

    Args:
        vit: The model; it is run on a few pictures where that is what a choice depends on.
        images: The pictures.
        config: What was asked for.
        device: Where the model will run.

    Returns:
        The same with the choices made. The device stays as it was asked for, for another machine
        may work on a part of the pictures.
    """
    config = replace(config, dtype=_choose_dtype(vit, images, config, device))
    return replace(
        config,
        batch_size=choose_batch_size(vit, images.preprocessing.size, config, device),
        num_workers=choose_num_workers(config, device),
    )


def choose_batch_size(
    vit: ViTAdapter, size: tuple[int, int], config: RunConfig, device: torch.device
) -> int:
    """Pictures per forward pass.

    Args:
        vit: The model; on a GPU it is run on a few empty pictures to see what memory one takes.
        size: Input height and width in pixels.
        config: What was asked for.
        device: Where the model will run.

    Returns:
        What was asked for; of auto, the largest power of two that fits.
    """
    if not isinstance(config.batch_size, str):
        return config.batch_size
    if device.type != "cuda":
        return largest_power_of_two(_CPU_PIXELS / (size[0] * size[1]))
    with vit.placed(device, config.torch_dtype):
        free, _ = torch.cuda.mem_get_info(device)
        few, more = (_peak_bytes(vit, count, size, device) for count in _PROBES)
    each = max(1.0, (more - few) / (_PROBES[1] - _PROBES[0]))
    return min(_MAX_BATCH, largest_power_of_two(_SHARE_OF_MEMORY * free / each))


def largest_power_of_two(bound: float) -> int:
    """The largest power of two within a bound.

    Args:
        bound: Any number.

    Returns:
        The power; 1 where there is none.
    """
    return 1 << max(0, int(bound).bit_length() - 1) if bound >= 1 else 1


def choose_num_workers(config: RunConfig, device: torch.device) -> int:
    """Processes that decode pictures beside the model.

    Args:
        config: What was asked for.
        device: Where the model will run.

    Returns:
        What was asked for; of auto, none on a CPU, where they would take the cores that the model
        runs on, and beside a GPU one a core but one, shared by the processes that `torchrun`
        started on this machine.
    """
    if not isinstance(config.num_workers, str):
        return config.num_workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(_MAX_WORKERS, (cores or 1) // here - 1))


def _choose_dtype(
    vit: ViTAdapter, images: ImageSet, config: RunConfig, device: torch.device
) -> DTypeName:
    if config.dtype != "auto":
        return config.dtype
    asked = parse_layers(config.layers) if isinstance(config, AuditConfig) else "last"
    for batch in iter_batches(replace(images, described=False), batch_size=_TRIED):
        if batch.indices:
            return choose_dtype(vit, batch.pixels, device, vit.select_layers(asked))
    return "float32"  # no picture can be read, as the run will say


def _peak_bytes(vit: ViTAdapter, count: int, size: tuple[int, int], device: torch.device) -> int:
    pixels = torch.zeros(count, 3, *size, device=device)
    torch.cuda.reset_peak_memory_stats(device)
    vit.trace(pixels, [], lambda _: None)
    return torch.cuda.max_memory_allocated(device)
