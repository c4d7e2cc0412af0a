"""Memory and disk of an audit's sums and tables over very many pictures, without a model.

Rows of random features go through what an audit does behind its model: sums, table, feature shards;
then through what it does at the end: means, centred numbers, every estimate of the layer. Printed
are the peak memory of the process, what of it was there before the first row, and the disk that
sums, table and features took at most.

    python benchmarks/million_rows.py --rows 1000000 --dim 64
"""

import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter

from vitscope.metrics import feature_sums
from vitscope.metrics.feature_plan import make_plan
from vitscope.metrics.feature_sums import FeatureSums
from vitscope.metrics.jackknife import NUM_BLOCKS
from vitscope.results.records import RecordWriter, table_path
from vitscope.results.summary import add_centred_numbers, summarize_layer

app = App(help=__doc__)

_GROUPS = ("cls", "registers", "patches")
_BATCH = 256


@app.default
def main(
    *,
    rows: int = 1_000_000,
    dim: int = 64,
    fold_at: Annotated[
        int | None, Parameter(help="Rows at which rows are folded; as in an audit if left out.")
    ] = None,
    keep: Annotated[bool, Parameter(help="Keep feature shards.")] = False,
) -> None:
    """Send rows through, print what they took."""
    torch.set_num_threads(1)
    if fold_at is not None:
        feature_sums._FOLD_AT = fold_at / (dim * NUM_BLOCKS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sums = FeatureSums(make_plan(_GROUPS, **_ALL), folder=folder / "sums")
        before, start, disk = read_peak(), time.perf_counter(), 0
        writer = RecordWriter(folder, 0, 0, keep_features=keep)
        for number, first in enumerate(range(0, rows, _BATCH)):
            take_batch(sums, writer, first, min(_BATCH, rows - first), dim)
            if number % 40 == 0:
                disk = max(disk, measure(folder))
        writer.close()
        taken, seconds = read_peak(), time.perf_counter() - start
        table = table_path(folder, 0, 0)
        add_centred_numbers(folder, table, 0, sums)
        summarize_layer(table, sums)
        disk = max(disk, measure(folder))
    print(f"{rows} rows, dim {dim}, fold at {fold_at or 'the usual'}, features kept: {keep}")
    print(f"peak memory before the first row {before:.0f} MiB")
    print(f"peak memory after the last row {taken:.0f} MiB ({seconds:.0f} s)")
    print(f"peak memory after the summary {read_peak():.0f} MiB")
    print(f"peak disk {disk / 2**20:.0f} MiB ({time.perf_counter() - start:.0f} s in all)")


_ALL = {"has_skip": True, "has_embedding": True, "renormalize": False}


def take_batch(sums: FeatureSums, writer: RecordWriter, first: int, size: int, dim: int) -> None:
    """Send a batch of random rows through.

    Args:
        sums: Sums that take it in.
        writer: Writer of table and features.
        first: Number of the first row.
        size: Number of rows.
        dim: Width of the features.
    """
    generator = torch.Generator().manual_seed(first)
    common = torch.randn(size, dim, generator=generator)
    features = {
        name: common + torch.randn(size, dim, generator=generator) for name in sums.plan.kept
    }
    numbers = torch.rand(len(_SCALARS), size, generator=generator)
    identities = [(f"{number:032d}.jpg", f"{number:032x}") for number in range(first, first + size)]
    sums.update(features, [number % NUM_BLOCKS for number in range(first, first + size)])
    writer.append(identities, dict(zip(_SCALARS, numbers, strict=True)), features, {})


_SCALARS = [
    *(("attention_mass", group) for group in _GROUPS),
    *(("contribution_norm", group) for group in _GROUPS),
    *(("cosine", total, group) for total in ("attention", "residual") for group in _GROUPS),
    *(("layer_similarity", f"{depth:02d}") for depth in range(25)),
    *(("highest_patch_norm", f"{depth:02d}") for depth in range(25)),
]


def read_peak() -> float:
    """Peak memory of the process.

    Returns:
        MiB.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path) -> int:
    """Bytes of all files in a folder, each counted once however many names it has.

    Args:
        folder: The folder.

    Returns:
        Their sum.
    """
    files = (path.stat() for path in folder.rglob("*") if path.is_file())
    return sum({stat.st_ino: stat.st_size for stat in files}.values())


if __name__ == "__main__":
    sys.exit(app())
