"""Archives and tables of images for the tests, whole and otherwise."""

import tarfile
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


def make_tar(members: Mapping[str, bytes] | Iterable[tuple[str, bytes]], **options) -> bytes:
    """A tar archive of regular files, in the order given; a name may come twice."""
    buffer = BytesIO()
    pairs = members.items() if isinstance(members, Mapping) else members
    with tarfile.open(fileobj=buffer, mode="w", errors="surrogateescape", **options) as archive:
        for name, content in pairs:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, BytesIO(content))
    return buffer.getvalue()


def make_header(name: str, **fields) -> bytes:
    """The header of a member alone, without its content and without an end of the archive."""
    info = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT)


def make_image_column(contents: Iterable[bytes | None]) -> pa.Array:
    """Images as Hugging Face's datasets keep them."""
    rows = [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)]
    return pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))


def write_parquet(path: Path, columns: Mapping[str, object], **options) -> Path:
    pq.write_table(pa.table(dict(columns)), path, **options)
    return path
