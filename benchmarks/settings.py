"""What every part is given."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One run of the benchmarks.

    Attributes:
        images: Folders of images to take; images are made on the spot where there are none.
        tiny: Tiny models and few images: whether everything runs, in seconds. The numbers then
            mean nothing.
    """

    images: tuple[Path, ...] = ()
    tiny: bool = False
