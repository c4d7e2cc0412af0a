"""Images, as many as a part wants, each with an identity of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from benchmarks.settings import Plan
from vitscope.images.image_set import ImageBatch, ImageSet, iter_batches
from vitscope.models.base import ViTAdapter

_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Decoded:
    """Images on disk and the same decoded, so that decoding is not timed."""

    images: ImageSet
    batches: list[ImageBatch]  # preprocessed


@contextmanager
def decoded_images(vit: ViTAdapter, plan: Plan, sources: Sequence[Path] = ()) -> Iterator[Decoded]:
    """Decode images as a model wants them."""
    preprocessing = vit.preprocessing
    if plan.size is not None:
        preprocessing = preprocessing.with_size((plan.size, plan.size))
    with TemporaryDirectory() as folder:
        write_images(Path(folder), plan.images, sources)
        images = ImageSet.from_sources([folder], preprocessing)
        yield Decoded(images, list(iter_batches(images, batch_size=plan.batch_size)))


def write_images(folder: Path, count: int, sources: Sequence[Path]) -> None:
    """Write images, no two with the same bytes: copies of the sources in turn, or made here."""
    if not sources:
        for number in range(count):
            _make_image(number).save(folder / f"{number:05d}.jpg", quality=90)
        return
    found = [p for source in sources for p in sorted(source.rglob("*")) if p.suffix in _SUFFIXES]
    if not found:
        raise FileNotFoundError(f"no images ({', '.join(sorted(_SUFFIXES))}) in {sources}")
    for number, path in enumerate(islice(cycle(found), count)):
        # Decoders read up to the image's end mark; an identity is of all bytes.
        data = path.read_bytes() + number.to_bytes(4)
        (folder / f"{number:05d}{path.suffix}").write_bytes(data)


def _make_image(number: int) -> Image.Image:
    generator = np.random.default_rng(number)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = generator.integers(-12, 13, smooth.shape)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))
