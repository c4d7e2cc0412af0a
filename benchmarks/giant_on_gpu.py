"""How near does a ViT-g/14 come to a GPU's matrix peak, and what does its audit cost there?"""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.audits import bare_forward, make_config, time_audit
from benchmarks.images import decoded_images
from benchmarks.page import Section, Table
from benchmarks.settings import Plan, Settings
from benchmarks.timm_models import load_dinov2_reg
from vitscope.images.image_set import ImageBatch
from vitscope.models.base import ViTAdapter

_FULL = [
    Plan("giant", 224, images=9 * 64, batch_size=64),
    Plan("giant", 518, images=9 * 16, batch_size=16),
]
_TINY = [Plan("tiny", 32, images=3 * 2, batch_size=2)]
_COLUMNS = ("input", "batch", "forward", "images / s", "share of the peak", "audit / forward")


def measure(settings: Settings) -> Section:
    """Time forward and audit in bfloat16 on the GPU; on the CPU with a tiny model to try it out."""
    plans, device, matrix = (_TINY, "cpu", 256) if settings.tiny else (_FULL, "cuda", 8192)
    tables = []
    if device == "cpu" or torch.cuda.is_available():
        rows = list(_rows(plans, device, matrix, settings.images))
        tables.append(Table(_COLUMNS, rows))
    return Section(
        title="ViT-g/14 with four registers on a GPU",
        how=(
            f"timm's DINOv2 with registers, dinov2-{plans[0].model}-reg, random weights, bfloat16, "
            f"{plans[0].num_batches - 1} rounds of a batch: the audit of the last layer against "
            "the bare forward with weights in bfloat16, and under autocast in inference mode, "
            "which casts the weights for every batch. The peak is a product of two "
            f"{matrix} × {matrix} bfloat16 matrices in the same run; operations are "
            "counted by torch's FlopCounterMode."
        ),
        tables=tables,
        notes=[] if tables else ["There is no GPU here: not run"],
    )


def _rows(
    plans: Sequence[Plan], device: str, matrix: int, sources: Sequence[Path]
) -> Iterator[list[str]]:
    audited, mixed, half = (
        load_dinov2_reg(plans[0].model).to(device, dtype)
        for dtype in (torch.float32, torch.float32, torch.bfloat16)
    )

    def run_half(batch: ImageBatch) -> None:
        with torch.inference_mode():
            half.run(batch.pixels.to(device, torch.bfloat16))

    def run_mixed(batch: ImageBatch) -> None:
        with torch.autocast(device, torch.bfloat16):
            bare_forward(mixed.run, device)(batch)

    for plan in plans:
        config = make_config(plan.batch_size, device=device, dtype="bfloat16")
        others = {"bfloat16": run_half, "autocast": run_mixed}
        with decoded_images(audited, plan, sources) as images:
            peak = measure_peak(device, matrix)
            times = time_audit(audited, images, config, others)
        operations = plan.batch_size * count_operations(half, plan.size)
        for name, seconds in times.others.items():
            yield [
                f"{plan.size} px",
                str(plan.batch_size),
                name,
                f"{plan.batch_size / min(seconds):.1f}",
                f"{operations / min(seconds) / peak:.0%}",
                str(times.ratio(name)),
            ]


def count_operations(vit: ViTAdapter, size: int) -> int:
    """Multiplications and additions of the matrix products in one image's forward."""
    pixels = torch.zeros(1, 3, size, size).to(vit.parameter)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        vit.run(pixels)
    return counter.get_total_flops()


def measure_peak(device: str, side: int, seconds: float = 1.0) -> float:
    """The most operations per second that products of square bfloat16 matrices reach."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best
