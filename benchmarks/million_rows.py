"""Memory and disk of an audit's sums and tables over very many images, without a model.

Rows of random features go through what an audit does behind its model: parts of 512 images with
sums and table, and features if they are kept; the merging of the parts; and what follows from them:
centred numbers and every estimate of the layer. Covariates are left out: their regression holds
about half a kilobyte an image in memory. Printed are the peak memory of the process after each
step, and the disk that was taken.

    python benchmarks/million_rows.py --rows 1000000 --dim 64
"""

import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

from vitscope.metrics import feature_sums
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.metrics.sums import Batch
from vitscope.results.finishing import merge_parts
from vitscope.results.manifest import Manifest, write_sums
from vitscope.results.records import RecordWriter, table_path
from vitscope.results.saved_result import write_failures
from vitscope.results.schema import ModelSummary, PreprocessingSummary
from vitscope.results.summary import add_centred_numbers, summarize_images

app = App(help=__doc__)

_PART, _BATCH = 512, 32
_GROUPS = ("cls", "registers", "patches")
_SCALARS = [
    *(("attention_mass", group) for group in _GROUPS),
    *(("contribution_norm", group) for group in _GROUPS),
    *(("cosine", total, group) for total in ("attention", "residual") for group in _GROUPS),
    *(("restricted_cosine", "attention", group) for group in _GROUPS),
    *(("share", group) for group in _GROUPS),
    ("patch_share",),
    *(("layer_similarity", f"{depth:02d}") for depth in range(25)),
    *(("highest_patch_norm", f"{depth:02d}") for depth in range(25)),
]
_MANIFEST = Manifest(
    model=ModelSummary(
        id="made up",
        family="",
        recipe="",
        size=None,
        num_params=0,
        depth=24,
        embed_dim=64,
        num_heads=1,
        patch_size=(16, 16),
        num_registers=4,
        global_feature="cls",
        grid=(1, 1),
        dtype="float32",
    ),
    weights_hash="",
    layers=(0,),
    groups=_GROUPS,
    has_skip=True,
    tokens=(),
    renormalize=False,
    cls_term="own",
    dtype="float32",
    preprocessing=PreprocessingSummary(size=(16, 16), mean=(0, 0, 0), std=(1, 1, 1)),
    has_masks=False,
    tolerance=0.0,
)


@app.default
def main(
    *,
    rows: int = 1_000_000,
    dim: int = 64,
    fold_at: Annotated[
        int | None, Parameter(help="Rows at which rows are folded; as in an audit if left out.")
    ] = None,
    keep: Annotated[bool, Parameter(help="Keep features.")] = False,
) -> None:
    """Send rows through, print what they took."""
    torch.set_num_threads(1)
    if fold_at is not None:
        feature_sums._FOLD_AT = fold_at / (dim * NUM_BLOCKS)
    print(f"{rows} rows, dim {dim}, features {'kept' if keep else 'dropped'}")
    print(f"folded at {fold_at or 4 * dim * NUM_BLOCKS} rows")
    report("imported", time.perf_counter())
    with tempfile.TemporaryDirectory() as name:
        start, parts, merged = time.perf_counter(), Path(name) / "parts", Path(name) / "merged"
        folders = list(write_parts(parts, rows, dim, keep=keep))
        report(f"{len(folders)} parts written", start, parts)
        start = time.perf_counter()
        sums = merge_parts(merged, _MANIFEST, folders)[0].find(FeatureSums)[0]
        report("merged", start, parts, merged)
        start = time.perf_counter()
        table = table_path(merged, 0, 0)
        add_centred_numbers(merged, table, 0, sums)
        summarize_images(table)
        sums.summarize()
        report("summarised", start, parts, merged)


def report(step: str, start: float, *folders: Path) -> None:
    """Print what a step took: the peak memory so far, the disk, and the seconds."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    files = [path.stat() for folder in folders for path in folder.rglob("*") if path.is_file()]
    # A file of several names is there once.
    disk = sum({file.st_ino: file.st_size for file in files}.values()) / 2**20
    seconds = time.perf_counter() - start
    print(f"{step}: peak memory {peak:.0f} MiB, disk {disk:.0f} MiB, {seconds:.0f} s", flush=True)


def write_parts(folder: Path, rows: int, dim: int, *, keep: bool) -> Iterator[Path]:
    """Write parts of random rows, as an audit does."""
    for first in range(0, rows, _PART):
        part = folder / f"{first // _PART:06d}"
        part.mkdir(parents=True)
        sums = _MANIFEST.make_sums(part)
        writer = RecordWriter(part, 0, 0, keep_features=keep)
        end = min(first + _PART, rows)
        for start in range(first, end, _BATCH):
            take_batch(sums.find(FeatureSums)[0], writer, start, min(_BATCH, end - start), dim)
        writer.close()
        write_sums(part, _MANIFEST, sums)
        write_failures(part, [])
        yield part


def take_batch(sums: FeatureSums, writer: RecordWriter, first: int, size: int, dim: int) -> None:
    """Send a batch of random rows through."""
    generator = torch.Generator().manual_seed(first)
    common = torch.randn(size, dim, generator=generator)
    features = {
        name: common + torch.randn(size, dim, generator=generator) for name in sums.plan.kept
    }
    numbers = torch.rand(len(_SCALARS), size, generator=generator)
    identities = [(f"{number:032d}.jpg", f"{number:032x}") for number in range(first, first + size)]
    sums.update(Batch(features, [number % NUM_BLOCKS for number in range(first, first + size)]))
    writer.append(identities, dict(zip(_SCALARS, numbers, strict=True)), features, {})


if __name__ == "__main__":
    sys.exit(app())
