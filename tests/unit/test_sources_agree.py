"""The same images are the same however they are stored."""

from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from containers import make_image_column, make_tar, write_parquet
from encoded import encode
from vitscope.errors import UsageError
from vitscope.images.image_set import ImageSet, iter_batches
from vitscope.images.preprocessing import Preprocessing

PREPROCESSING = Preprocessing(size=(6, 9), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
SUFFIX = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "BMP": "bmp"}


def make_image(seed: int, file_format: str, *, broken: bool) -> tuple[str, bytes]:
    rng = np.random.default_rng(seed)
    size = rng.integers(1, 20, 2)
    data = encode(rng.integers(0, 256, (*size, 3), dtype=np.uint8), file_format)
    return SUFFIX[file_format], data[: len(data) // 3] if broken else data


IMAGES = st.lists(
    st.builds(make_image, st.integers(0, 99), st.sampled_from(list(SUFFIX)), broken=st.booleans()),
    min_size=1,
    max_size=7,
)


def write_all(root: Path, images: list[tuple[str, bytes]], per_file: int) -> list[str]:
    """Write the images in every way; returns the sources, each of which names all of them."""
    files = {f"{k:03}.{suffix}": data for k, (suffix, data) in enumerate(images)}
    for folder in ("files", "tar", "struct", "bytes"):
        (root / folder).mkdir()
    for name, data in files.items():
        (root / "files" / name).write_bytes(data)
        fsspec.filesystem("memory").pipe_file(f"/agree/{name}", data)
    items = list(files.items())
    for start in range(0, len(items), per_file):
        part = dict(items[start : start + per_file])
        samples = [
            pair
            for name, data in part.items()
            for pair in ((name, data), (f"{name[:3]}.cls", b"7"))
        ]
        (root / "tar" / f"{start:03}.tar").write_bytes(make_tar(samples))
        columns = {"struct": make_image_column(part.values()), "bytes": pa.array(part.values())}
        for kind, column in columns.items():
            write_parquet(root / kind / f"{start:03}.parquet", {"image": column}, row_group_size=2)
    return [str(root / kind) for kind in ("files", "tar", "struct", "bytes")] + ["memory://agree"]


def read_all(images: ImageSet):
    batches = list(iter_batches(images, batch_size=3))
    described = [batch.covariates for batch in batches if batch.ids]
    return (
        [index for batch in batches for index in batch.indices],
        [digest for batch in batches for digest in batch.ids],
        [(failure.index, failure.reason) for batch in batches for failure in batch.failures],
        torch.cat([batch.pixels for batch in batches]),
        {name: torch.cat([one[name] for one in described]) for name in (described or [{}])[0]},
    )


@settings(deadline=None, max_examples=25)
@given(images=IMAGES, per_file=st.integers(1, 4), data=st.data())
def test_files_archives_tables_and_stores_give_the_same(images, per_file, data):
    limit = data.draw(st.none() | st.integers(1, len(images)))
    try:
        with TemporaryDirectory() as folder:
            sources = write_all(Path(folder), images, per_file)
            expected, *others = (
                read_all(ImageSet.from_sources(source, PREPROCESSING, limit=limit, seed=5))
                for source in sources
            )
    finally:
        fsspec.filesystem("memory").store.clear()
    for found in others:
        assert found[:3] == expected[:3]
        torch.testing.assert_close(found[3], expected[3], rtol=0, atol=0)
        torch.testing.assert_close(found[4], expected[4], rtol=0, atol=0, equal_nan=True)


@given(data=st.data(), count=st.integers(1, 12))
def test_some_of_a_set_are_those_of_the_set(data, count):
    addresses = tuple(Path(f"{k}.png") for k in range(count))
    masks = data.draw(st.sampled_from([(), tuple(Path(f"m{k}.png") for k in range(count))]))
    whole = ImageSet(addresses, PREPROCESSING, masks, described=False)
    chosen = data.draw(st.lists(st.integers(0, count - 1)))
    some = whole.select(chosen)
    assert some.addresses == tuple(addresses[k] for k in chosen)
    assert some.masks == (tuple(masks[k] for k in chosen) if masks else ())
    assert (some.preprocessing, some.described) == (PREPROCESSING, False)
    again = data.draw(st.lists(st.sampled_from(range(len(chosen))))) if chosen else []
    assert some.select(again) == whole.select([chosen[k] for k in again])


# Masks


@pytest.fixture
def masks(tmp_path) -> Path:
    (tmp_path / "masks").mkdir()
    for key in ("a", "c"):
        Image.new("L", (9, 6), 3).save(tmp_path / "masks" / f"{key}.png")
    return tmp_path / "masks"


def test_masks_are_called_as_the_samples_of_an_archive(tmp_path, masks):
    image = encode(np.zeros((6, 9, 3), dtype=np.uint8), "JPEG")
    names = ("x/a.jpg", "x/b.jpg", "y/c.jpg")
    (tmp_path / "x.tar").write_bytes(make_tar(dict.fromkeys(names, image)))
    images = ImageSet.from_sources(tmp_path / "x.tar", PREPROCESSING, masks=masks)
    assert images.masks == (masks / "a.png", None, masks / "c.png")
    (batch,) = iter_batches(images.select([2, 0]), batch_size=9)
    assert batch.indices == [0, 1]
    twice = make_tar(dict.fromkeys(("x/a.jpg", "y/a.jpg"), image))
    (tmp_path / "x.tar").write_bytes(twice)
    with pytest.raises(UsageError, match="could be of 2 images of that name"):
        ImageSet.from_sources(tmp_path / "x.tar", PREPROCESSING, masks=masks)


def test_rows_of_tables_have_no_names_for_masks(tmp_path, masks):
    file = write_parquet(tmp_path / "x.parquet", {"image": [b""]})
    with pytest.raises(UsageError, match="has no name that a mask could be matched with"):
        ImageSet.from_sources(file, PREPROCESSING, masks=masks)
