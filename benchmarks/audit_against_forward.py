"""Cost of an audit against the bare forward pass, as a ratio in one run.

Every decoded batch goes first through the model alone and then through the audit (forward, ledger,
proofs, sums, tables, feature shards), so that both meet the same state of the machine; what the
audit does when the last batch is through is counted in. Peak memory of the process is printed.

    python benchmarks/audit_against_forward.py IMAGES --model dinov2-small
"""

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

import vitscope
from vitscope.pictures.images import ImageBatch, ImageSet, iter_batches
from vitscope.runs.audit_loop import AuditRun

app = App(help=__doc__)


@app.default
def main(
    *images: Path,
    model: str = "dinov2-small",
    limit: int = 192,
    batch_size: int = 32,
    rounds: Annotated[int, Parameter(help="Times that all batches are gone through.")] = 5,
    layers: str = "last",
    dtype: str = "float32",
) -> None:
    """Time both on the same decoded pictures."""
    vit = vitscope.load_model(model)
    config = vitscope.AuditConfig(batch_size=batch_size, layers=layers, dtype=dtype)
    image_set = ImageSet.from_sources(list(images), vit.preprocessing, limit=limit)
    batches = list(iter_batches(image_set, batch_size=batch_size))
    device = vit.parameter.device

    def run_audit(stream: Iterable[ImageBatch]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            AuditRun(vit, image_set, config).execute(Path(folder), batches=stream)

    def forward(batch: ImageBatch) -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            vit.run(batch.pixels.to(device, vit.parameter.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    for batch in batches[:2]:
        forward(batch)
    ratios = [time_round(run_audit, forward, batches) for _ in range(rounds)]
    print(f"{model}, layers {layers}, {dtype}, {len(image_set)} pictures, batch {batch_size}")
    print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"audit / forward: median {statistics.median(ratios):.3f} of {rounds} rounds")
    print(f"rounds: {', '.join(f'{ratio:.3f}' for ratio in ratios)}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process {peak:.0f} MiB")


def time_round(
    run_audit: Callable[[Iterable[ImageBatch]], None],
    forward: Callable[[ImageBatch], float],
    batches: list[ImageBatch],
) -> float:
    """Seconds of the audit over seconds of the forward passes that alternate with it.

    Args:
        run_audit: Audits the batches it is given.
        forward: Runs the bare model on a batch and tells how long it took.
        batches: Decoded pictures.

    Returns:
        The ratio.
    """
    seconds = []

    def alternate() -> Iterator[ImageBatch]:
        for batch in batches:
            seconds.append(forward(batch))
            yield batch

    start = time.perf_counter()
    run_audit(alternate())
    return (time.perf_counter() - start - sum(seconds)) / sum(seconds)


if __name__ == "__main__":
    sys.exit(app())
