"""Cost of an audit against the bare forward pass, as a ratio in one run.

The same decoded batches go, in turn, through the model alone and through the audit (forward,
ledger, proofs, sums, tables, feature shards); both are timed over all batches, alternating, and the
median of the rounds' ratios is printed, with the peak memory of the process.

    python benchmarks/audit_against_forward.py IMAGES --model dinov2-small
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

import vitscope
from vitscope.audit_loop import AuditRun
from vitscope.images import ImageSet

app = App(help=__doc__)


@app.default
def main(
    *images: Path,
    model: str = "dinov2-small",
    limit: int = 192,
    batch_size: int = 32,
    rounds: Annotated[int, Parameter(help="Times that both are run, alternating.")] = 5,
    layers: str = "last",
    dtype: str = "float32",
) -> None:
    """Time both on the same decoded pictures."""
    vit = vitscope.load_model(model)
    config = vitscope.AuditConfig(batch_size=batch_size, layers=layers, dtype=dtype)
    image_set = ImageSet.from_sources(list(images), vit.preprocessing, limit=limit)
    run = AuditRun(vit, image_set, config)
    batches = list(run.iter_batches())
    device = vit.parameter.device

    def forward() -> None:
        with torch.inference_mode():
            for batch in batches:
                vit.run(batch.pixels.to(device, vit.parameter.dtype))
        if device.type == "cuda":
            torch.cuda.synchronize()

    def audit() -> None:
        with tempfile.TemporaryDirectory() as folder:
            AuditRun(vit, image_set, config).execute(Path(folder), batches, None)

    seconds = {"forward": [], "audit": []}
    forward()
    for _ in range(rounds):
        for name, function in (("forward", forward), ("audit", audit)):
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    per_image = {n: statistics.median(s) / len(image_set) * 1e3 for n, s in seconds.items()}
    ratios = [a / f for a, f in zip(seconds["audit"], seconds["forward"], strict=True)]
    print(f"{model}, {layers} layer(s), {dtype}, {len(image_set)} pictures, batch {batch_size}")
    print(f"device {device}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"forward {per_image['forward']:.2f} ms/image, audit {per_image['audit']:.2f} ms/image")
    print(
        f"ratio {statistics.median(ratios):.3f} (rounds: {', '.join(f'{r:.3f}' for r in ratios)})"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process {peak:.0f} MiB")


if __name__ == "__main__":
    sys.exit(app())
