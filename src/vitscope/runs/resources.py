"""Settings chosen for the machine: batch size, precision, processes; and library versions."""

import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import cache
from importlib import metadata

import torch

from vitscope.config import AuditConfig, Config, DType, RunConfig
from vitscope.decomposition import choose_dtype
from vitscope.errors import MemoryShortageError
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.maps.registry import list_packages
from vitscope.models.base import Pixels, ViTAdapter
from vitscope.models.memory import CPU_TOKENS, check_memory

_CPU_PIXELS = 32 * 224 * 224
"""Pixels per batch without CUDA, where memory is not measured: few enough for any machine."""

_MAX_BATCH = 512
_SHARE_OF_MEMORY = 0.6
_PROBES = (1, 9)
_MAX_WORKERS = 8
_TRIED = 8  # most images for trying a lower precision, in one pass

_LIBRARIES = (
    "vitscope",
    "torchvision",
    "timm",
    "transformers",
    "open-clip-torch",
    "numpy",
    "pillow",
)
"""Libraries that numbers depend on."""

_MEMORY_MESSAGES = ("allocate memory", "STATUS_ALLOC_FAILED")


def settle_config(
    vit: ViTAdapter, images: ImageSet, config: Config, device: torch.device
) -> Config:
    """Replace "auto" settings by choices."""
    asked = 1 if isinstance(config.batch_size, str) else min(config.batch_size, len(images))
    check_memory(vit, images.preprocessing.size, device, decoded=max(1, asked))
    config = replace(config, dtype=_choose_dtype(vit, images, config, device))
    return replace(
        config,
        batch_size=choose_batch_size(vit, images.preprocessing.size, config, device),
        num_workers=choose_num_workers(config, device),
    )


def fits(work: Callable[[], object], num_images: int) -> bool:
    """Do some work; False if memory is short for these images, unless it is for a single one."""
    try:
        work()
    except MemoryShortageError:
        if num_images == 1:
            raise
    else:
        return True
    # The failed attempt's memory is released only after the except block.
    free_cached_memory()
    return False


def free_cached_memory() -> None:
    """Release GPU memory that torch holds but does not use."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def choose_batch_size(
    vit: ViTAdapter, size: tuple[int, int], config: RunConfig, device: torch.device
) -> int:
    """Images per batch."""
    if not isinstance(config.batch_size, str):
        return config.batch_size
    if device.type != "cuda":
        return largest_power_of_two(_CPU_PIXELS / (size[0] * size[1]))
    with plain_memory_errors(device, 1), vit.placed(device, config.torch_dtype):
        each = _bytes_per_image(vit, size, device)
        # After the passes, which have allocated what stays, such as weights in half precision.
        free_cached_memory()
        free, _ = torch.cuda.mem_get_info(device)
    return min(_MAX_BATCH, largest_power_of_two(_SHARE_OF_MEMORY * free / each))


def choose_pass_size(vit: ViTAdapter, size: tuple[int, int], device: torch.device) -> int | None:
    """Images per pass; None for the whole batch."""
    if device.type != "cpu":
        return None
    return largest_power_of_two(CPU_TOKENS / vit.make_layout(*size).num_tokens)


def largest_power_of_two(bound: float) -> int:
    """The largest power of two up to a bound."""
    return 1 << max(0, int(bound).bit_length() - 1) if bound >= 1 else 1


@contextmanager
def plain_memory_errors(device: torch.device, num_images: int) -> Iterator[None]:
    """Turn out-of-memory errors into `MemoryShortageError`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # torch raises OutOfMemoryError for a GPU only; the CPU's allocator and CUDA's libraries
        # raise RuntimeError.
        is_named = isinstance(error, (torch.OutOfMemoryError, MemoryError))
        if not (is_named or any(told in str(error) for told in _MEMORY_MESSAGES)):
            raise
        images, smaller = (
            ("1 image", "input size or model")
            if num_images == 1
            else (f"{num_images} images", "batch size or input size")
        )
        raise MemoryShortageError(
            f"not enough memory on {device} for {images} at a time: use a smaller {smaller}"
        ) from None


def choose_num_workers(config: RunConfig, device: torch.device) -> int:
    """Number of processes that decode images."""
    if not isinstance(config.num_workers, str):
        return config.num_workers
    if device.type == "cpu":
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(0, min(_MAX_WORKERS, (cores or 1) // here - 1))


def _choose_dtype(
    vit: ViTAdapter, images: ImageSet, config: RunConfig, device: torch.device
) -> DType:
    if config.dtype != "auto":
        return config.dtype
    asked = config.layers if isinstance(config, AuditConfig) else "last"
    size = choose_pass_size(vit, images.preprocessing.size, device) or _TRIED
    for batch in iter_batches(replace(images, described=False), batch_size=min(size, _TRIED)):
        if batch.indices:
            return _try_dtype(vit, batch.pixels, device, vit.select_layers(asked))
    return "float32"  # no image can be read; the run will report it


def _try_dtype(
    vit: ViTAdapter, pixels: Pixels, device: torch.device, layers: Sequence[int]
) -> DType:
    # On fewer images if memory is short, as in the run itself.
    found: list[DType] = []

    def choose() -> None:
        with plain_memory_errors(device, len(pixels)):
            found.append(choose_dtype(vit, pixels, device, layers))

    if fits(choose, len(pixels)):
        return found[0]
    return _try_dtype(vit, pixels[: len(pixels) // 2], device, layers)


def _bytes_per_image(vit: ViTAdapter, size: tuple[int, int], device: torch.device) -> float:
    few, more = _PROBES
    base = _peak_bytes(vit, few, size, device)
    kept = torch.cuda.memory_allocated(device)
    with suppress(MemoryShortageError):
        # What the first pass allocated for good is in both peaks and cancels.
        return max(1.0, (_peak_bytes(vit, more, size, device) - base) / (more - few))
    # The failed attempt's memory is released only after the with block. What the few images take
    # together bounds what each takes.
    free_cached_memory()
    return max(1.0, (base - kept) / few)


def _peak_bytes(vit: ViTAdapter, count: int, size: tuple[int, int], device: torch.device) -> int:
    with plain_memory_errors(device, count):
        pixels = torch.zeros(count, 3, *size, device=device)
        torch.cuda.reset_peak_memory_stats(device)
        vit.trace(pixels, [], lambda _: None)
        return torch.cuda.max_memory_allocated(device)


def list_versions(maps: Iterable[str] = ()) -> dict[str, str]:
    """Versions of Python, of the installed libraries, and of packages that declare these maps."""
    found = {name: version for name in _LIBRARIES if (version := _find_version(name)) is not None}
    own = {"python": platform.python_version(), **found, "torch": str(torch.__version__)}
    return own | list_packages(maps)


@cache
def _find_version(library: str) -> str | None:
    try:
        return metadata.version(library)  # reads and parses a file
    except metadata.PackageNotFoundError:
        return None
