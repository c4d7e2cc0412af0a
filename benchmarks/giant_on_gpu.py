"""How near does a ViT-g/14 come to a GPU's matrix peak, and what does its audit cost there?"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.audits import bare_forward, make_config, time_audit
from benchmarks.images import decoded_images
from benchmarks.page import Section, Table
from benchmarks.settings import Settings
from benchmarks.timm_models import load_dinov2_reg
from vitscope.images.image_set import ImageBatch
from vitscope.models.base import ViTAdapter


@dataclass(frozen=True)
class Plan:
    """What is run, and where.

    Attributes:
        device: "cuda", or "cpu" to see whether the code runs.
        model: Name of a DINOv2 with registers.
        batch_sizes: Images a batch, by input size in pixels.
        batches: Batches of each.
        matrix: Side of the square matrices whose product is the peak.
    """

    device: str
    model: str
    batch_sizes: dict[int, int]
    batches: int
    matrix: int


_FULL = Plan("cuda", "giant", {224: 64, 518: 16}, batches=9, matrix=8192)
_TINY = Plan("cpu", "tiny", {32: 2}, batches=3, matrix=256)


def measure(settings: Settings) -> Section:
    """Time forward and audit in bfloat16 on the GPU; on the CPU with a tiny model to try it out.

    Args:
        settings: The run's settings.

    Returns:
        Rows for each input size; none, with a note, where there is no GPU.
    """
    plan = _TINY if settings.tiny else _FULL
    section = Section(
        title="ViT-g/14 with four registers on a GPU",
        how=(
            f"timm's DINOv2 with registers, dinov2-{plan.model}-reg, random weights, bfloat16, "
            f"{plan.batches - 1} rounds of a batch: the audit of the last layer against the bare "
            "forward with weights in bfloat16, and under autocast in inference mode, which casts "
            "the weights for every batch. The peak is a product of two "
            f"{plan.matrix} × {plan.matrix} bfloat16 matrices in the same run; operations are "
            "counted by torch's FlopCounterMode."
        ),
    )
    if plan.device == "cuda" and not torch.cuda.is_available():
        return Section(section.title, section.how, notes=["There is no GPU here: not run"])
    columns = ("input", "batch", "forward", "images / s", "share of the peak", "audit / forward")
    return Section(section.title, section.how, [Table(columns, list(_rows(plan, settings.images)))])


def _rows(plan: Plan, sources: Sequence[Path]) -> Iterator[list[str]]:
    audited = load_dinov2_reg(plan.model).to(plan.device, torch.float32)
    half = load_dinov2_reg(plan.model).to(plan.device, torch.bfloat16)
    mixed = load_dinov2_reg(plan.model).to(plan.device, torch.float32)

    def run_half(batch: ImageBatch) -> None:
        with torch.inference_mode():
            half.run(batch.pixels.to(plan.device, torch.bfloat16))

    def run_mixed(batch: ImageBatch) -> None:
        with torch.autocast(plan.device, torch.bfloat16):
            bare_forward(mixed.run, plan.device)(batch)

    for size, batch_size in plan.batch_sizes.items():
        config = make_config(batch_size, device=plan.device, dtype="bfloat16")
        others = {"bfloat16": run_half, "autocast": run_mixed}
        count = plan.batches * batch_size
        with decoded_images(
            audited, count, size=size, batch_size=batch_size, sources=sources
        ) as images:
            peak = measure_peak(plan.device, plan.matrix)
            times = time_audit(audited, images, config, others)
        operations = batch_size * count_operations(half, size)
        for name, seconds in times.others.items():
            yield [
                f"{size} px",
                str(batch_size),
                name,
                f"{batch_size / min(seconds):.1f}",
                f"{operations / min(seconds) / peak:.0%}",
                str(times.ratio(name)),
            ]


def count_operations(vit: ViTAdapter, size: int) -> int:
    """Operations of one image's forward.

    Args:
        vit: The model.
        size: Input size in pixels.

    Returns:
        Multiplications and additions of matrix products.
    """
    pixels = torch.zeros(1, 3, size, size).to(vit.parameter)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        vit.run(pixels)
    return counter.get_total_flops()


def measure_peak(device: str, side: int, seconds: float = 1.0) -> float:
    """The most operations per second that matrix products reach.

    Args:
        device: Where.
        side: Side of the square bfloat16 matrices.
        seconds: How long to go on.

    Returns:
        Operations per second, the best of all products.
    """
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
