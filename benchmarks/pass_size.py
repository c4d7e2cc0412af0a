"""How many images should go through a model at a time on a CPU?"""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measuring import alternate
from benchmarks.models import load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from vitscope.runs.resources import choose_pass_size

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class _Cell:
    model: str
    size: int
    images: int
    rounds: int


_FULL = (
    _Cell("small", 112, 64, 3),
    _Cell("small", 224, 32, 3),
    _Cell("small", 518, 8, 3),
    _Cell("base", 224, 16, 3),
    _Cell("large", 224, 8, 2),
)
_TINY = (_Cell("tiny", 32, 4, 2),)


def measure(settings: Settings) -> Section:
    """Take the same images through bare models in passes of every size.

    Args:
        settings: The run's settings.

    Returns:
        A table for each precision, a row for each model and input size.
    """
    cells = _TINY if settings.tiny else _FULL
    sizes = _list_sizes(max(cell.images for cell in cells))
    rows = [row for cell in cells for row in _measure_rows(cell, sizes)]
    columns = ("model", "px", "precision", "chosen", *map(str, sizes))
    return Section(
        title="Images that go through the model at a time",
        how=(
            "The forward pass of transformers' DINOv2 on a CPU, in passes of 1, 2, 4 … images, "
            "bfloat16 under autocast. Given is the median time per image over that of the size an "
            "audit chooses (*chosen*)."
        ),
        tables=[Table(columns, rows)],
    )


def _list_sizes(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length())]


def _measure_rows(cell: _Cell, columns: list[int]) -> Iterator[list[str]]:
    vit = load_dinov2(cell.model)
    chosen = choose_pass_size(vit, (cell.size, cell.size), torch.device("cpu"))
    pixels = torch.rand(cell.images, 3, cell.size, cell.size)
    sizes = _list_sizes(cell.images)
    contenders = {
        f"{name} {size}": partial(_run, vit.module, pixels, size, dtype)
        for name, dtype in _PRECISIONS.items()
        for size in sizes
    }
    times = alternate(contenders, cell.rounds)
    seconds = {name: statistics.median(rounds) for name, rounds in times.items()}
    for name in _PRECISIONS:
        base = seconds[f"{name} {min(chosen or cell.images, cell.images)}"]
        ratios = {size: f"{seconds[f'{name} {size}'] / base:.2f}" for size in sizes}
        yield [
            f"dinov2-{cell.model}",
            str(cell.size),
            name,
            str(chosen),
            *(ratios.get(size, "") for size in columns),
        ]


def _run(module: nn.Module, pixels: Tensor, size: int, dtype: torch.dtype) -> None:
    half = dtype != torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        for part in pixels.split(size):
            module(part)
