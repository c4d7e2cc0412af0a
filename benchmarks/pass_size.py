"""How many images should go through a model at a time on a CPU?"""

import statistics
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measuring import alternate
from benchmarks.models import load_dinov2
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from vitscope.runs.resources import choose_pass_size

_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


_FULL = (
    Plan("small", 112, images=64, rounds=3),
    Plan("small", 224, images=32, rounds=3),
    Plan("small", 518, images=8, rounds=3),
    Plan("base", 224, images=16, rounds=3),
    Plan("large", 224, images=8, rounds=2),
)
_TINY = (Plan("tiny", 32, images=4, rounds=2),)


def measure(settings: Settings) -> Section:
    """Take the same images through bare models in passes of every size."""
    plans = _TINY if settings.tiny else _FULL
    sizes = _list_sizes(max(plan.images for plan in plans))
    rows = [row for plan in plans for row in _measure_rows(plan, sizes)]
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


def _measure_rows(plan: Plan, columns: list[int]) -> Iterator[list[str]]:
    vit = load_dinov2(plan.model)
    chosen = choose_pass_size(vit, (plan.size, plan.size), torch.device("cpu"))
    pixels = torch.rand(plan.images, 3, plan.size, plan.size)
    sizes = _list_sizes(plan.images)
    contenders = {
        f"{name} {size}": partial(_run, vit.module, pixels, size, dtype)
        for name, dtype in _PRECISIONS.items()
        for size in sizes
    }
    times = alternate(contenders, plan.rounds)
    seconds = {name: statistics.median(rounds) for name, rounds in times.items()}
    for name in _PRECISIONS:
        base = seconds[f"{name} {min(chosen or plan.images, plan.images)}"]
        ratios = {size: f"{seconds[f'{name} {size}'] / base:.2f}" for size in sizes}
        yield [
            f"dinov2-{plan.model}",
            str(plan.size),
            name,
            str(chosen),
            *(ratios.get(size, "") for size in columns),
        ]


def _run(module: nn.Module, pixels: Tensor, size: int, dtype: torch.dtype) -> None:
    half = dtype != torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
        for part in pixels.split(size):
            module(part)
