"""What is trained: the cells of the grid, and the presets that choose them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

MAIN = ("V0", "V1", "V2", "V4")
"""The trade-off: free to decouple (V0, V1) against forced to use patches (V2, V4)."""

OTHERS = ("V0+2", "V3", "V5", "V6")
"""The control of the number of tokens, and what separates the paths. V5 is only matched if deep."""


@dataclass(frozen=True)
class Cell:
    """One model to train."""

    variant: str
    depth: int
    width: int
    num_images: int
    seed: int
    task: str

    @property
    def name(self) -> str:
        """A name for its folder."""
        return (
            f"{self.variant}-depth{self.depth}-width{self.width}-{self.task}"
            f"-{self.num_images}-seed{self.seed}"
        )


@dataclass(frozen=True)
class Preset:
    """A grid of cells, and how each is trained and measured.

    Attributes:
        task, noise: Of the scenes.
        depths, sizes: Depths and numbers of training images, which the variants of `MAIN` have all
            of. The others have `middle` = (depth, size) alone, V5 the greatest depth and that size.
        batch_size, steps: Of training.
        precision: Lightning's name of the precision.
        audits: Audits during training, besides the one before it.
        callback_images, audit_images, traced_images, judged_images: Test scenes that are audited
            during training, audited afterwards, traced, and whose maps are judged. Maps are judged
            in one cell of each variant.
        classified_images: Test scenes of the accuracies; the others are the first of them.
    """

    task: str
    noise: float
    depths: Sequence[int]
    width: int
    heads: int
    sizes: Sequence[int]
    middle: tuple[int, int]
    seeds: Sequence[int]
    batch_size: int
    steps: int
    precision: str
    audits: int
    callback_images: int
    audit_images: int
    traced_images: int
    judged_images: int
    classified_images: int
    main: Sequence[str] = MAIN
    others: Sequence[str] = OTHERS

    def list_cells(self) -> list[Cell]:
        """All cells, the slowest first, so that the last processes to finish wait little."""
        cells = sorted(self._walk(), key=lambda cell: (not self.judges(cell), -cell.depth))
        return list(dict.fromkeys(cells))

    def _walk(self) -> Iterator[Cell]:
        for seed, variant, depth, size in product(self.seeds, self.main, self.depths, self.sizes):
            yield Cell(variant, depth, self.width, size, seed, self.task)
        for seed, variant in product(self.seeds, self.others):
            depth, size = self._find_middle(variant)
            yield Cell(variant, depth, self.width, size, seed, self.task)

    def _find_middle(self, variant: str) -> tuple[int, int]:
        # The fewer its blocks, the fewer operations V5 has for its parameters.
        depth, size = self.middle
        return (max(self.depths) if variant == "V5" else depth), size

    def judges(self, cell: Cell) -> bool:
        """Whether maps of this cell are judged: of its variant's middle, and of the first seed."""
        middle = (cell.depth, cell.num_images) == self._find_middle(cell.variant)
        return middle and cell.seed == self.seeds[0] and self.judged_images > 0


_CPU = Preset(
    task="shortcut",
    noise=130.0,
    depths=(3, 9),
    width=48,
    heads=3,
    sizes=(1_000, 4_000),
    middle=(3, 4_000),
    seeds=(0, 1),
    batch_size=64,
    steps=300,
    precision="32-true",
    audits=5,
    callback_images=256,
    audit_images=1_000,
    traced_images=48,
    judged_images=20,
    classified_images=10_000,
)

PRESETS = {
    # Every step of the study once; its numbers mean nothing.
    "smoke": replace(
        _CPU,
        depths=(2,),
        width=24,
        sizes=(64,),
        middle=(2, 64),
        seeds=(0,),
        batch_size=32,
        steps=8,
        audits=1,
        callback_images=24,
        audit_images=40,
        traced_images=4,
        judged_images=2,
        classified_images=100,
        main=("V1", "V4"),
        others=(),
    ),
    "cpu": _CPU,
    "gpu": replace(
        _CPU,
        depths=(4, 12),
        width=192,
        sizes=(1_000, 16_000),
        middle=(4, 16_000),
        batch_size=256,
        steps=1_000,
        precision="bf16-mixed",
        callback_images=512,
        audit_images=2_000,
        traced_images=64,
    ),
    "day": replace(
        _CPU,
        depths=(6, 12, 24),
        width=384,
        heads=6,
        sizes=(1_000, 10_000, 100_000),
        middle=(12, 10_000),
        seeds=(0, 1, 2),
        batch_size=256,
        steps=20_000,
        precision="bf16-mixed",
        audits=20,
        callback_images=1_000,
        audit_images=5_000,
        traced_images=200,
        judged_images=100,
    ),
}
