"""What every part is given."""

from dataclasses import KW_ONLY, dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmarks."""

    images: tuple[Path, ...] = ()  # folders of images; without any, images are made on the spot
    tiny: bool = False  # tiny models, few images: whether everything runs, numbers mean nothing


@dataclass(frozen=True)
class Plan:
    """A model and its images."""

    model: str
    size: int | None = None  # side of the input in pixels; the model's own if None
    _: KW_ONLY
    images: int
    batch_size: int = 1
    rounds: int = 1

    @property
    def num_batches(self) -> int:
        """Whole batches of the images."""
        return self.images // self.batch_size
